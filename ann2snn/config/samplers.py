"""The registry of samplers: one line each says where its functions are and which settings it takes.

Lines name functions of `ann2snn.diffusion.samplers` instead of importing them: settings are checked, and --help is
answered, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .code import Code

#: Spacings of times, by what a sampler visits: whole diffusion steps, or real times between them. Its default is first.
WHOLE_SKIPS = ("uniform", "quadratic", "ddpm_torch_linear", "ddpm_torch_quadratic", "sddpm", "trailing")
REAL_SKIPS = ("logsnr", "uniform", "quadratic")


@dataclass(frozen=True)
class Sampler:
    """A sampler function and what is known about it without running it; calling it calls the function.

    function(net, process, x_T, *, noise, clip, on_step, **options). times(process, **options): the diffusion time of
    every network call, in order; raises UserError for options that do not fit. options:
    names beyond `noise, clip, on_step`; those of `SampleConfig`, and what only sampling knows: statistics, spike_steps,
    factor. skips: the time spacings it knows. least_order, max_order: 0 where there is none. stochastic: draws noise
    after x_T; None where eta > 0 decides. clips: takes `clip`. linear: it samples any process, as a `LinearProcess`;
    else DDPM's, as a `VP`.
    """

    function: Callable[..., Any]
    times: Callable[..., Sequence[float]]
    options: tuple[str, ...]
    stochastic: bool | None
    skips: tuple[str, ...] = ()
    max_order: int = 0
    least_order: int = 1
    clips: bool = True
    linear: bool = False

    def __call__(self, *args: object, **options: object) -> Any:
        return self.function(*args, **options)

    def calls(self, process: object, **options: object) -> int:
        """Network calls per image, exactly. Raises UserError as `times`."""
        return len(self.times(process, **options))

    def draws_noise(self, options: Mapping[str, Any]) -> bool:
        """Whether the sampler draws noise after x_T."""
        return options.get("eta", 0.0) > 0 if self.stochastic is None else self.stochastic


def _at(places: str) -> tuple[Code, Code]:
    """The functions that "module.function, module.times" names."""
    function, times = (Code(f"diffusion.samplers.{place}") for place in places.split(", "))
    return function, times


_SOLVER, _LINEAR = ("steps", "order", "skip"), ("steps", "eta", "denoise", "grid_power", "factor")
_DDIM = ("steps", "eta", "skip", "denoise", "ddim_epsilon")
_CURRENTS, _STATISTICS = ("steps", "skip", "spike_steps"), ("steps", "skip", "statistics")
_GDDIM = (*_LINEAR, "order", "corrector")
_WHOLE: dict[str, Any] = {"skips": WHOLE_SKIPS}
_REAL: dict[str, Any] = {"skips": REAL_SKIPS}
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(*_at("ancestral.sample_ddpm, ancestral.ddpm_times"), (), True),
    "ddim": Sampler(*_at("ddim.sample_ddim, ddim.ddim_times"), _DDIM, None, **_WHOLE),
    "ddpm_strided": Sampler(*_at("strided.sample_ddpm_strided, grids.whole_times"), ("steps", "skip"), True, **_WHOLE),
    "analytic_dpm": Sampler(*_at("strided.sample_analytic_dpm, strided.analytic_times"), _STATISTICS, True, **_WHOLE),
    "dpm_solver": Sampler(
        *_at("dpm_solver.sample_dpm_solver, dpm_solver.dpm_solver_times"), _SOLVER, False, **_REAL, max_order=3
    ),
    "dpmpp": Sampler(*_at("dpmpp.sample_dpmpp, dpmpp.dpmpp_times"), _SOLVER, False, **_REAL, max_order=3),
    "dpmpp_singlestep": Sampler(
        *_at("dpmpp_singlestep.sample_dpmpp_singlestep, dpm_solver.dpm_solver_times"),
        _SOLVER,
        False,
        **_REAL,
        max_order=3,
    ),
    "dpmpp_sde": Sampler(*_at("dpmpp.sample_dpmpp_sde, dpmpp.dpmpp_sde_times"), _SOLVER, True, **_REAL, max_order=2),
    "heun": Sampler(*_at("heun.sample_heun, heun.heun_times"), ("steps", "skip"), False, **_REAL),
    "unipc": Sampler(*_at("unipc.sample_unipc, dpmpp.dpmpp_times"), _SOLVER, False, **_REAL, max_order=3),
    "pndm": Sampler(*_at("pndm.sample_pndm, pndm.pndm_times"), ("steps", "lower_order_final"), False),
    "fsddim": Sampler(
        *_at("currents.sample_currents, currents.current_times"), _CURRENTS, False, **_WHOLE, clips=False
    ),
    "gddim": Sampler(
        *_at("linear.run_gddim, linear.gddim_times"), _GDDIM, None, max_order=3, least_order=0, linear=True
    ),
    "euler": Sampler(*_at("linear.run_euler, linear.euler_times"), _LINEAR, None, linear=True),
}


def samplers_with(option: str) -> str:
    """The names of the samplers that take this option, as a sentence lists them."""
    return listed([name for name, sampler in SAMPLERS.items() if option in sampler.options])


def listed(names: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
