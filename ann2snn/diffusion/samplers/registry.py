"""Every sampler by name, with what it accepts, so that bad options are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...config import SampleConfig, require
from ..vp import VP
from .ancestral import sample_ddpm
from .currents import current_times, sample_currents
from .ddim import ddim_times, sample_ddim
from .dpm_solver import dpm_solver_times, sample_dpm_solver
from .dpmpp import dpmpp_sde_times, dpmpp_times, sample_dpmpp, sample_dpmpp_sde
from .grids import REAL_TIMES, WHOLE_TIMES, whole_times
from .heun import heun_times, sample_heun
from .strided import analytic_times, sample_analytic_dpm, sample_ddpm_strided
from .unipc import sample_unipc


@dataclass(frozen=True)
class Sampler:
    """A sampler function and what is known about it without running it; calling it calls the function.

    times(process, **options): the diffusion time of every network call, in order; raises UserError for options that
    do not fit. options: names beyond the common `noise, clip, on_step`. skips: the time spacings it knows.
    max_order: 0 where there is none. stochastic: draws noise after x_T; None where eta > 0 decides.
    """

    function: Callable[..., Tensor]
    times: Callable[..., Sequence[float]]
    options: tuple[str, ...]
    stochastic: bool | None
    skips: tuple[str, ...] = ()
    max_order: int = 0

    def __call__(self, *args: object, **options: object) -> Tensor:
        return self.function(*args, **options)

    def calls(self, process: VP, **options: object) -> int:
        """Network calls per image, exactly. Raises UserError as `times`."""
        return len(self.times(process, **options))

    def draws_noise(self, options: Mapping[str, Any]) -> bool:
        """Whether the sampler draws noise after x_T."""
        return options.get("eta", 0.0) > 0 if self.stochastic is None else self.stochastic


def _all_times(process: VP, steps: int | None = None) -> list[int]:
    available = process.diffusion_steps
    require(steps in (None, available), f"ancestral sampling takes all {available} steps, not {steps}")
    return list(range(available - 1, -1, -1))


def _strided_times(process: VP, steps: int, skip: str = "uniform") -> list[int]:
    return whole_times(process, steps, skip)


WHOLE, REAL = tuple(WHOLE_TIMES), tuple(REAL_TIMES)
SOLVER_OPTIONS = ("steps", "order", "skip")
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(sample_ddpm, _all_times, (), stochastic=True),
    "ddim": Sampler(
        sample_ddim, ddim_times, ("steps", "eta", "skip", "denoise", "ddim_epsilon"), stochastic=None, skips=WHOLE
    ),
    "ddpm_strided": Sampler(sample_ddpm_strided, _strided_times, ("steps", "skip"), stochastic=True, skips=WHOLE),
    "analytic_dpm": Sampler(
        sample_analytic_dpm,
        analytic_times,
        ("steps", "skip", "statistics"),
        stochastic=True,
        skips=WHOLE,
    ),
    "dpm_solver": Sampler(
        sample_dpm_solver, dpm_solver_times, SOLVER_OPTIONS, stochastic=False, skips=REAL, max_order=3
    ),
    "dpmpp": Sampler(sample_dpmpp, dpmpp_times, SOLVER_OPTIONS, stochastic=False, skips=REAL, max_order=3),
    "dpmpp_sde": Sampler(sample_dpmpp_sde, dpmpp_sde_times, SOLVER_OPTIONS, stochastic=True, skips=REAL, max_order=2),
    "heun": Sampler(sample_heun, heun_times, ("steps", "skip"), stochastic=False, skips=REAL),
    "unipc": Sampler(sample_unipc, dpmpp_times, SOLVER_OPTIONS, stochastic=False, skips=REAL, max_order=3),
    "fsddim": Sampler(
        sample_currents,
        current_times,
        ("steps", "skip", "spike_steps"),
        stochastic=False,
        skips=WHOLE,
    ),
}


def options_of(
    sample: SampleConfig, statistics: Tensor | None = None, spike_steps: int | None = None
) -> dict[str, object]:
    """The settings that the sampler of `sample` takes besides noise, clip and on_step."""
    values = {"statistics": statistics, "spike_steps": spike_steps}
    return {
        name: values[name] if name in values else getattr(sample, name) for name in SAMPLERS[sample.sampler].options
    }


def check(name: str, process: VP, **options: object) -> Sequence[float]:
    """The times of the sampler's network calls. Raises UserError before anything is computed.

    For an unknown sampler, an option it does not have, an unknown spacing, more steps than there are diffusion times,
    an order that does not exist or needs more calls, eta outside 0 to 1, missing statistics, a network on images
    where it needs one on currents, or a process that it cannot sample.
    """
    require(name in SAMPLERS, f"--sampler={name}: use one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    known = (*sampler.options, "steps")  # ddpm, which has no other number of them, may be told so
    surplus = [option for option in options if option not in known]
    require(not surplus, f"--sampler={name}: has no option {', '.join(surplus)}")
    missing = "steps" in sampler.options and options.get("steps") is None
    require(not missing, f"--sampler={name}: give the number of steps")
    return sampler.times(process, **options)
