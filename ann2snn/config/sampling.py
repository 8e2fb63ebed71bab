"""How images are generated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .checks import check_bool, check_choice, check_int, check_limits, check_number, check_seed, make_plain, require
from .classes import check_class_label, check_guidance
from .diffusion import DiffusionConfig
from .processes import PROCESSES
from .samplers import REAL_SKIPS, SAMPLERS, WHOLE_SKIPS, Sampler, listed, samplers_with
from .spiking import AUTO, check_carry_steps

SDE_SAMPLERS = tuple(name for name, sampler in SAMPLERS.items() if sampler.linear)  # of every process
SAMPLER_NAMES = tuple(SAMPLERS)
#: Those of any network on images; fsddim needs one that emits currents.
IMAGE_SAMPLERS = tuple(
    name for name, sampler in SAMPLERS.items() if not sampler.linear and "spike_steps" not in sampler.options
)
CORRECTORS = ("none", "pec", "pece")
#: What the noise of ddim's step is after the predicted image was clipped: recomputed to match, or the network's own.
DDIM_EPSILONS = ("recomputed", "network")
SKIPS = tuple(dict.fromkeys((*WHOLE_SKIPS[:2], *REAL_SKIPS, *WHOLE_SKIPS)))
#: What a sampler may not have, by its field of `SampleConfig` and its flag.
SOME_TAKE = {
    "steps": "sampler_steps",
    "eta": "eta",
    "order": "sampler_order",
    "grid_power": "grid_power",
    "skip": "skip_type",
}


@dataclass(frozen=True)
class SampleConfig:
    """How images are generated. steps counts network calls (ddpm always visits every diffusion step).

    skip: which diffusion times are visited, see `diffusion.samplers.grids`; two schedules of other programs have
    their own way to count steps. "" or None: "logsnr" for the solvers, else "uniform". order: of the dpm_solver, dpmpp,
    dpmpp_singlestep, dpmpp_sde and unipc samplers, and of gddim's extrapolation. denoise: end with a call that removes
    the last noise; ddim and the SDE samplers can do without, blur always does. eta: of ddim; λ of gddim and euler.
    corrector: of gddim. lower_order_final: pndm's last steps combine ever fewer predictions. grid_power: the SDE
    samplers' times are evenly spaced in t^(1/grid_power).
    clip: fsddim has none and sets it False.
    amp: call the network under bfloat16 autocast; the sampler's own arithmetic stays as it is. tf32: on a GPU multiply
    float32 in TF32, see `precision`. ddim_epsilon: see
    `DDIM_EPSILONS`; without clipping both are the same. carry: a converted network keeps its levels from call to call
    and sends spikes only for what changes, under `stream` in carry_steps time steps or until silence.
    guidance: w of classifier-free guidance, (1 + w)·conditional − w·unconditional; 0: the conditional prediction alone.
    class_label: of all images, a class's number or name, or "none" for no class; None: image i is of class i modulo
    their number.
    `diffusion.process.check_sampling` compares all of it with the process.
    """

    sampler: str = "ddpm"
    steps: int = 50
    eta: float = 0.0
    clip: bool = True
    seed: int = 0
    skip: str = ""
    order: int = 2
    denoise: bool = True
    corrector: str = "none"
    grid_power: float = 2.0
    amp: bool = False
    ddim_epsilon: str = "recomputed"
    carry: bool = False
    carry_steps: int | str = AUTO
    tf32: bool = False
    guidance: float = 0.0
    class_label: int | str | None = None
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice(self.sampler, SAMPLERS, "--sampler")
        sampler = self.kind
        if self.skip is None or (isinstance(self.skip, str) and not self.skip):
            object.__setattr__(self, "skip", sampler.skips[0] if sampler.skips else "uniform")
        object.__setattr__(self, "steps", check_limits("sampler_steps", self.steps))
        check_choice(self.skip, SKIPS, "--skip_type")
        object.__setattr__(self, "order", check_int(self.order, "--sampler_order"))
        least = sampler.least_order
        require(least <= self.order <= 3, f"--sampler_order={self.order}: use {least} to 3")
        check_choice(self.corrector, CORRECTORS, "--corrector")
        require(
            self.corrector == "none" or "corrector" in sampler.options,
            f"--corrector={self.corrector}: only --sampler={samplers_with('corrector')} has one",
        )
        check_number(self.grid_power, "--grid_power")
        require(0 < self.grid_power <= 100, f"--grid_power={self.grid_power}: use a value above 0, at most 100")
        for name in ("clip", "denoise", "amp", "tf32", "carry", "lower_order_final"):
            check_bool(getattr(self, name), "--clip_x0" if name == "clip" else f"--{name}")
        check_number(self.eta, "--eta")
        object.__setattr__(self, "guidance", check_guidance(self.guidance))
        object.__setattr__(self, "class_label", check_class_label(self.class_label))
        object.__setattr__(self, "carry_steps", check_carry_steps(self.carry_steps))
        require(self.carry or self.carry_steps == AUTO, f"--carry_steps={self.carry_steps}: only with --carry")
        check_choice(self.ddim_epsilon, DDIM_EPSILONS, "--ddim_epsilon")
        require(
            self.ddim_epsilon == "recomputed" or "ddim_epsilon" in sampler.options,
            f"--ddim_epsilon={self.ddim_epsilon}: only --sampler={samplers_with('ddim_epsilon')} has the choice",
        )
        require(
            self.denoise or "denoise" in sampler.options,
            f"--denoise=False: only --sampler={samplers_with('denoise')} can end without it",
        )
        require(
            not self.lower_order_final or "lower_order_final" in sampler.options,
            f"--lower_order_final: only --sampler={samplers_with('lower_order_final')} has the choice",
        )
        require(0 <= self.eta <= 1, f"--eta={self.eta}: use 0 (deterministic) to 1")
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not sampler.clips:
            object.__setattr__(self, "clip", False)

    def from_rest(self) -> SampleConfig:
        """The same, with a network that starts every call from rest: one that has no levels to keep."""
        return replace(self, carry=False, carry_steps=AUTO)

    @property
    def kind(self) -> Sampler:
        return SAMPLERS[self.sampler]

    def check_taken(self) -> SampleConfig:
        """Return self. Raises UserError for what was asked for and the sampler would pass over; flagfiles may have
        that, as they serve several samplers, and so it is for the caller to tell."""
        default = SampleConfig(self.sampler)
        for field in SOME_TAKE:
            if getattr(self, field) != getattr(default, field):
                check_taken(self.sampler, field, getattr(self, field))
        return self

    def taken(self) -> dict[str, Any]:
        """The fields by name, but those that the sampler would pass over."""
        return {name: value for name, value in vars(self).items() if name not in SOME_TAKE or name in self.kind.options}

    def check_fits(self, diffusion: DiffusionConfig) -> None:
        """Raise UserError if the process has fewer steps than asked for, or none that the sampler knows."""
        stepwise = listed([name for name, kind in PROCESSES.items() if kind.whole_steps])
        others = listed([name for name, sampler in SAMPLERS.items() if sampler.linear], "or")
        require(
            diffusion.whole_steps or self.kind.linear,
            f"--sampler={self.sampler}: samples --process={stepwise} only; "
            f"--process={diffusion.process} needs {others}",
        )
        # The others choose times between the steps.
        if self.kind.skips == WHOLE_SKIPS:
            require(
                self.steps <= diffusion.diffusion_steps,
                f"--sampler_steps={self.steps}: more than the {diffusion.diffusion_steps} diffusion steps (--T)",
            )

    @property
    def branches(self) -> int:
        """Rows of an image in every network call: guidance asks with its class and without."""
        return 2 if self.guidance else 1

    def calls(self, diffusion: DiffusionConfig) -> int:
        """Network calls per image; a call holds all `branches`."""
        available = diffusion.diffusion_steps
        if "steps" not in self.kind.options:
            return available
        if not self.kind.skips:  # it takes no spacing, whatever a flagfile says, and its `steps` are its calls
            return self.steps
        times = self.steps
        if self.skip == "ddpm_torch_linear":  # every k-th time, k rounded down
            times = -(-available // (available // self.steps))
        if self.skip == "sddpm":  # t = 0 is appended where the list does not reach it
            times += available >= 2 * self.steps
        return times - (not self.denoise)


def check_taken(sampler: str, field: str, value: object) -> None:
    """Raise UserError where the sampler does not take this field of `SOME_TAKE`."""
    flag = f"--{SOME_TAKE[field]}={value}: --sampler={sampler}"
    message = f"{flag} has none; only {samplers_with(field)} have one"
    if field == "steps":
        message = f"{flag} visits every diffusion step; give another --sampler, as ddim or ddpm_strided"
    require(field in SAMPLERS[sampler].options, message)
