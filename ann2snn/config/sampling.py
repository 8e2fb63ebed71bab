"""How images are generated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .checks import check_bool, check_choice, check_int, check_limits, check_number, check_seed, make_plain, require
from .classes import check_class_label, check_guidance
from .diffusion import DiffusionConfig
from .spiking import AUTO, check_carry_steps

SDE_SAMPLERS = ("gddim", "euler")  # of every process
SAMPLER_NAMES = (
    *("ddpm", "ddim", "ddpm_strided", "analytic_dpm", "dpm_solver", "dpmpp", "dpmpp_sde", "heun", "unipc", "fsddim"),
    *SDE_SAMPLERS,
)
#: Those of any network on images; fsddim needs one that emits currents.
IMAGE_SAMPLERS = tuple(name for name in SAMPLER_NAMES if name not in ("fsddim", *SDE_SAMPLERS))
CORRECTORS = ("none", "pec", "pece")
#: What the noise of ddim's step is after the predicted image was clipped: recomputed to match, or the network's own.
DDIM_EPSILONS = ("recomputed", "network")
LOGSNR_SAMPLERS = (
    "dpm_solver",
    "dpmpp",
    "dpmpp_sde",
    "heun",
    "unipc",
)  # whose times are evenly spaced in log SNR unless asked otherwise
SKIPS = ("uniform", "quadratic", "logsnr", "ddpm_torch_linear", "ddpm_torch_quadratic", "sddpm", "trailing")


@dataclass(frozen=True)
class SampleConfig:
    """How images are generated. steps counts network calls (ddpm always visits every diffusion step).

    skip: which diffusion times are visited, see `diffusion.samplers.grids`; two schedules of other programs have
    their own way to count steps. "" or None: "logsnr" for the solvers, else "uniform". order: of the dpm_solver, dpmpp,
    dpmpp_sde and unipc samplers, and of gddim's extrapolation. denoise: end with a call that removes the last noise;
    ddim and the SDE samplers can do without, blur always does. eta: noise of ddim; λ of gddim and euler.
    corrector: of gddim. grid_power: the SDE samplers' times are evenly spaced in t^(1/grid_power).
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

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice(self.sampler, SAMPLER_NAMES, "--sampler")
        if self.skip is None or (isinstance(self.skip, str) and not self.skip):
            object.__setattr__(self, "skip", "logsnr" if self.sampler in LOGSNR_SAMPLERS else "uniform")
        object.__setattr__(self, "steps", check_limits("sampler_steps", self.steps))
        check_choice(self.skip, SKIPS, "--skip_type")
        object.__setattr__(self, "order", check_int(self.order, "--sampler_order"))
        least = 0 if self.sampler == "gddim" else 1
        require(least <= self.order <= 3, f"--sampler_order={self.order}: use {least} to 3")
        check_choice(self.corrector, CORRECTORS, "--corrector")
        require(
            self.corrector == "none" or self.sampler == "gddim",
            f"--corrector={self.corrector}: only --sampler=gddim has one",
        )
        check_number(self.grid_power, "--grid_power")
        require(0 < self.grid_power <= 100, f"--grid_power={self.grid_power}: use a value above 0, at most 100")
        for name in ("clip", "denoise", "amp", "tf32", "carry"):
            check_bool(getattr(self, name), "--clip_x0" if name == "clip" else f"--{name}")
        check_number(self.eta, "--eta")
        object.__setattr__(self, "guidance", check_guidance(self.guidance))
        object.__setattr__(self, "class_label", check_class_label(self.class_label))
        object.__setattr__(self, "carry_steps", check_carry_steps(self.carry_steps))
        require(self.carry or self.carry_steps == AUTO, f"--carry_steps={self.carry_steps}: only with --carry")
        check_choice(self.ddim_epsilon, DDIM_EPSILONS, "--ddim_epsilon")
        require(
            self.ddim_epsilon == "recomputed" or self.sampler == "ddim",
            f"--ddim_epsilon={self.ddim_epsilon}: only --sampler=ddim has the choice",
        )
        require(
            self.denoise or self.sampler in ("ddim", *SDE_SAMPLERS),
            "--denoise=False: only --sampler=ddim, gddim and euler can end without it",
        )
        require(0 <= self.eta <= 1, f"--eta={self.eta}: use 0 (deterministic) to 1")
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.sampler == "fsddim":
            object.__setattr__(self, "clip", False)

    def from_rest(self) -> SampleConfig:
        """The same, with a network that starts every call from rest: one that has no levels to keep."""
        return replace(self, carry=False, carry_steps=AUTO)

    def check_fits(self, diffusion: DiffusionConfig) -> None:
        """Raise UserError if the process has fewer steps than asked for, or none that the sampler knows."""
        require(
            diffusion.process == "vp" or self.sampler in SDE_SAMPLERS,
            f"--sampler={self.sampler}: samples --process=vp only; --process={diffusion.process} needs gddim or euler",
        )
        # The others choose times between the steps.
        if self.sampler in ("ddim", "ddpm_strided", "analytic_dpm", "fsddim"):
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
        if self.sampler == "ddpm":
            return available
        times = self.steps
        if self.skip == "ddpm_torch_linear":  # every k-th time, k rounded down
            times = -(-available // (available // self.steps))
        if self.skip == "sddpm":  # t = 0 is appended where the list does not reach it
            times += available >= 2 * self.steps
        return times - (not self.denoise)
