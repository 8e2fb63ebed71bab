"""Frozen, validated settings. Below the scripts nothing reads a command-line flag: it reads one of these.

Every field is checked on construction, so that a bad value stops a run before anything is computed or written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .errors import UserError

FULL_PRECISION = 32
SCHEDULES = ("layer_sync", "stream")
STREAM_NORMS = ("cumulative", "per_step", "frozen")
IF_NEURONS = ("bounded", "reference")
MEAN_TYPES = ("epsilon", "xstart", "xprev", "v")
BETA_SCHEDULES = ("linear", "quad", "cosine", "sigmoid", "const", "warmup10", "warmup50", "jsd")
LOSS_TYPES = ("mse", "kl")
PROCESSES = ("vp", "cld", "blur")
SDE_SAMPLERS = ("gddim", "euler")  # of every process
SAMPLER_NAMES = ("ddpm", "ddim", "ddpm_strided", "analytic_dpm", "dpm_solver", "dpmpp", "dpmpp_sde", *SDE_SAMPLERS)
CORRECTORS = ("none", "pec", "pece")
SKIPS = ("uniform", "quadratic", "logsnr", "ddpm_torch_linear", "ddpm_torch_quadratic", "sddpm")
VAR_TYPES = ("fixedlarge", "fixedsmall")
AUTO = "auto"
MAX_BURST = 127
MAX_MULT = 64
FT_METHODS = ("proxy", "bptt")
FT_INPUTS = ("data", "sampler")


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def check_int(value: object, flag: str) -> int:
    """Return `value` as an integer if it is one in value (2.0 is, 2.5, nan and "2" are not). Raises UserError."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    require(whole and abs(value) < 2**53 and value == int(value), f"{flag}={value}: must be a whole number")
    return int(value)


def check_seed(seed: int) -> None:
    """Seeds of 32 bits: numpy would split a larger one in two words, and image 0 of one could be image 1 of another."""
    require(0 <= check_int(seed, "--seed") < 2**32, f"--seed={seed}: use 0 to {2**32 - 1}")


def check_accumulate(parts: int) -> None:
    """Raise UserError unless a batch can be gone through in `parts` parts."""
    require(parts >= 1, f"--accumulate={parts}: use at least 1")


def check_bits(bits: int, flag: str) -> int:
    """Return `bits` as an integer; 2 to 8 or 32 (full precision). Raises UserError."""
    bits = check_int(bits, flag)
    require(bits in range(2, 9) or bits == FULL_PRECISION, f"{flag}={bits}: use 2 to 8, or 32 for full precision")
    return bits


@dataclass(frozen=True)
class UNetConfig:
    """Shape and precision of the denoiser; stored in every checkpoint.

    bits: activation width; 32 is a plain ReLU network. weight_bits: 32 keeps full-precision weights.
    norm_groups: groups of every GroupNorm. With one channel per group a norm cancels the time embedding, which is
    added per channel just before it, so keep at least two channels per group in the narrowest block.
    spike_driven: every convolution but the head reads activations, so that in the spiking network it reads spikes.
    """

    arch = "unet"  # no field: the name of `--arch`

    in_channels: int = 3
    image_size: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    dropout: float = 0.1
    bits: int = 8
    weight_bits: int = FULL_PRECISION
    weight_quant: str = "apot"
    diffusion_steps: int = 1000
    norm_groups: int = 32
    spike_driven: bool = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalise types once, here
        set_field(self, "bits", check_bits(self.bits, "--bit"))
        set_field(self, "weight_bits", check_bits(self.weight_bits, "--weight_bit"))
        set_field(self, "ch_mult", tuple(check_int(m, "--ch_mult") for m in self.ch_mult))
        for name, flag in (
            *(("in_channels", "image channels"), ("image_size", "--img_size"), ("ch", "--ch")),
            *(("num_res_blocks", "--num_res_blocks"), ("diffusion_steps", "--T"), ("norm_groups", "--norm_groups")),
        ):
            set_field(self, name, check_int(getattr(self, name), flag))
        require(isinstance(self.spike_driven, bool), f"--spike_driven={self.spike_driven}: use True or False")
        require(self.weight_quant in ("apot", "uniform"), f"--weight_quant={self.weight_quant}: use apot or uniform")
        require(
            self.in_channels in (1, 2, 3, 6),
            f"{self.in_channels} image channels: images have 1 (grey) or 3 (colour), twice as many with --process=cld",
        )
        require(0 < self.ch <= 4096, f"--ch={self.ch}: use 1 to 4096")
        require(1 <= self.num_res_blocks <= 16, f"--num_res_blocks={self.num_res_blocks}: use 1 to 16")
        require(0 <= self.dropout < 1, f"--dropout={self.dropout}: use a value in [0, 1)")
        require(1 <= self.diffusion_steps <= 100_000, f"--T={self.diffusion_steps}: use 1 to 100000")
        require(
            0 < len(self.ch_mult) <= 4 and min(self.ch_mult, default=0) > 0 and max(self.ch_mult) <= MAX_MULT,
            f"--ch_mult={','.join(map(str, self.ch_mult))}: give 1 to 4 values of 1 to {MAX_MULT}, each once; a flag "
            "repeated after a flagfile appends to the flagfile's values, so edit the flagfile instead",
        )
        require(self.ch % 2 == 0, f"--ch={self.ch}: must be even (sine and cosine halves of the time embedding)")
        require(
            self.norm_groups > 0 and self.ch % self.norm_groups == 0,
            f"--norm_groups={self.norm_groups}: must divide --ch={self.ch}",
        )
        factor = 2 ** (len(self.ch_mult) - 1)
        require(
            self.image_size > 0 and self.image_size % factor == 0,
            f"--img_size={self.image_size}: {len(self.ch_mult)} resolution levels halve it {len(self.ch_mult) - 1} "
            f"times, so it must be a multiple of {factor}",
        )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self) | {"ch_mult": list(self.ch_mult)}


@dataclass(frozen=True)
class SpikingConfig:
    """How a converted network runs; see docs/theory.md for what each choice costs.

    settle_steps: an integer ≥ 0, or "auto" (run on until no neuron fires). Only `stream` settles, and only with a
    norm under which corrections die out: cumulative settles to the quantized ANN, frozen to that ANN with its norms
    replaced by their frozen affine maps.
    burst: most spikes that a neuron of a `stream` may send in the last step of the window; 1 is a spike a step.
    """

    schedule: str = "layer_sync"
    signed: bool = True
    stream_norm: str = "cumulative"
    if_neuron: str = "bounded"
    settle_steps: int | str = 0
    burst: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", SCHEDULES), ("stream_norm", STREAM_NORMS), ("if_neuron", IF_NEURONS)):
            value = getattr(self, name)
            require(value in allowed, f"--{name}={value}: use one of {', '.join(allowed)}")
        require(isinstance(self.signed, bool), f"--signed={self.signed}: use True or False")
        object.__setattr__(self, "settle_steps", self._parse_settle(self.settle_steps))
        object.__setattr__(self, "burst", check_int(self.burst, "--burst"))
        require(1 <= self.burst <= MAX_BURST, f"--burst={self.burst}: use 1 to {MAX_BURST}")
        if self.burst > 1:
            require(
                self.schedule == "stream" and self.if_neuron == "bounded",
                f"--burst={self.burst}: only --schedule=stream with --if_neuron=bounded sends bursts",
            )
        if self.settle_steps != 0:
            require(
                self.schedule == "stream",
                f"--settle_steps={self.settle_steps}: layer_sync has nothing to settle; use it with --schedule=stream",
            )
            require(
                self.stream_norm != "per_step",
                f"--settle_steps={self.settle_steps}: under --stream_norm=per_step corrections do not die out; "
                "use cumulative or frozen",
            )
            require(
                self.if_neuron == "bounded",
                f"--settle_steps={self.settle_steps}: only --if_neuron=bounded is sure to fall silent",
            )

    def changed(self, **changes: object) -> SpikingConfig:
        """A copy with other fields; leaving `stream` leaves settling and bursts behind, unless they are given too."""
        if changes.get("schedule") == "layer_sync":
            changes = {"settle_steps": 0, "burst": 1, **changes}
        return dataclasses.replace(self, **changes)

    @property
    def label(self) -> str:
        """Short name for tables, such as "stream +2" or "stream burst 3"."""
        settle = f" +{self.settle_steps}" if self.settle_steps else ""
        return self.schedule + settle + (f" burst {self.burst}" if self.burst > 1 else "")

    @classmethod
    def completed(cls, stored: object) -> object:
        """What `to_dict` wrote, a setting that came later at its default; anything but a dictionary as it is."""
        return cls().to_dict() | stored if isinstance(stored, dict) else stored

    @staticmethod
    def _parse_settle(value: int | str) -> int | str:
        if value == AUTO:
            return AUTO
        try:
            steps = int(value)
        except (TypeError, ValueError, OverflowError):
            steps = -1
        require(0 <= steps <= 10_000, f"--settle_steps={value}: use 0 to 10000, or auto")
        return steps

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class DiffusionConfig:
    """The process: DDPM's (Ho et al., 2020) with its betas, what is predicted and which variance; or another.

    process: "vp" is DDPM's; "cld" (critically damped Langevin) and "blur" run in continuous time, predict noise and
    read diffusion_steps as the range of times that the network is told. factor: which K of CLD the network predicts.
    linear_first: the network learns what the best linear prediction of the noise leaves, see `diffusion.precondition`.
    schedule: how the betas grow, see `diffusion.schedules`; linear, quad, const and the warm-ups read beta_1 and
    beta_T, cosine reads cosine_offset, sigmoid the three sigmoid settings, jsd nothing.
    """

    diffusion_steps: int = 1000
    beta_1: float = 1e-4
    beta_T: float = 0.02
    mean_type: str = "epsilon"
    var_type: str = "fixedlarge"
    schedule: str = "linear"
    cosine_offset: float = 0.008
    sigmoid_start: float = -3.0
    sigmoid_end: float = 3.0
    sigmoid_tau: float = 1.0
    process: str = "vp"
    factor: str = "R"
    linear_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "diffusion_steps", check_int(self.diffusion_steps, "--T"))
        require(1 <= self.diffusion_steps <= 100_000, f"--T={self.diffusion_steps}: use 1 to 100000")
        require(
            0 < self.beta_1 <= self.beta_T < 1,
            f"--beta_1={self.beta_1}, --beta_T={self.beta_T}: need 0 < beta_1 <= beta_T < 1",
        )
        require(self.mean_type in MEAN_TYPES, f"--mean_type={self.mean_type}: use one of {', '.join(MEAN_TYPES)}")
        require(self.var_type in VAR_TYPES, f"--var_type={self.var_type}: use one of {', '.join(VAR_TYPES)}")
        self._check_schedule()
        require(self.process in PROCESSES, f"--process={self.process}: use one of {', '.join(PROCESSES)}")
        require(self.factor in ("R", "L"), f"--cld_factor={self.factor}: use R or L")
        require(self.factor == "R" or self.process == "cld", f"--cld_factor={self.factor}: only --process=cld has one")
        require(isinstance(self.linear_first, bool), f"--linear_first={self.linear_first}: use True or False")
        require(
            not self.linear_first or (self.process != "vp" and self.factor == "R"),
            "--linear_first: only for --process=cld with --cld_factor=R and for --process=blur",
        )
        if self.process != "vp":
            require(
                (self.schedule, self.mean_type) == ("linear", "epsilon"),
                f"--process={self.process}: has its own schedule and predicts noise; drop "
                f"--beta_schedule={self.schedule} and --mean_type={self.mean_type}",
            )
            require(self.diffusion_steps >= 2, f"--T={self.diffusion_steps}: --process={self.process} needs at least 2")

    def _check_schedule(self) -> None:
        name = self.schedule
        require(name in BETA_SCHEDULES, f"--beta_schedule={name}: use one of {', '.join(BETA_SCHEDULES)}")
        for setting in ("cosine_offset", "sigmoid_start", "sigmoid_end", "sigmoid_tau"):
            value = getattr(self, setting)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(number and abs(value) <= 100, f"{setting}={value}: use a number between -100 and 100")
        require(self.cosine_offset > 0, f"cosine_offset={self.cosine_offset}: must be positive")
        require(self.sigmoid_tau >= 0.01, f"sigmoid_tau={self.sigmoid_tau}: use at least 0.01")
        low, high = self.sigmoid_start / self.sigmoid_tau, self.sigmoid_end / self.sigmoid_tau
        require(
            high - low >= 1e-3 and -30 <= low and high <= 30,  # beyond 30 the sigmoid is flat in float64
            f"sigmoid_start={self.sigmoid_start}, sigmoid_end={self.sigmoid_end}: over sigmoid_tau={self.sigmoid_tau} "
            "they must rise, and lie between -30 and 30",
        )
        require(
            name != "jsd" or self.mean_type != "epsilon",
            "--beta_schedule=jsd: its last step is pure noise, in which --mean_type=epsilon finds no image; "
            "use xstart, xprev or v",
        )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SampleConfig:
    """How images are generated. steps counts network calls (ddpm always visits every diffusion step).

    skip: which diffusion times are visited, see `diffusion.samplers.grids`; two schedules of other programs have
    their own way to count steps. order: of the dpm_solver, dpmpp and dpmpp_sde samplers, and of gddim's extrapolation.
    denoise: end with a call that removes the last noise; ddim and the SDE samplers can do without, blur always does.
    eta: noise of ddim; λ of gddim and euler. corrector: of gddim. grid_power: the SDE samplers' times are evenly spaced
    in t^(1/grid_power). `diffusion.process.check_sampling` compares all of it with the process.
    """

    sampler: str = "ddpm"
    steps: int = 50
    eta: float = 0.0
    clip: bool = True
    seed: int = 0
    skip: str = "uniform"
    order: int = 2
    denoise: bool = True
    corrector: str = "none"
    grid_power: float = 2.0

    def __post_init__(self) -> None:
        require(self.sampler in SAMPLER_NAMES, f"--sampler={self.sampler}: use one of {', '.join(SAMPLER_NAMES)}")
        require(self.steps >= 1, f"--sampler_steps={self.steps}: use at least 1")
        require(self.skip in SKIPS, f"--skip_type={self.skip}: use one of {', '.join(SKIPS)}")
        object.__setattr__(self, "order", check_int(self.order, "--sampler_order"))
        least = 0 if self.sampler == "gddim" else 1
        require(least <= self.order <= 3, f"--sampler_order={self.order}: use {least} to 3")
        require(self.corrector in CORRECTORS, f"--corrector={self.corrector}: use one of {', '.join(CORRECTORS)}")
        require(
            self.corrector == "none" or self.sampler == "gddim",
            f"--corrector={self.corrector}: only --sampler=gddim has one",
        )
        require(0 < self.grid_power <= 100, f"--grid_power={self.grid_power}: use a value above 0, at most 100")
        require(isinstance(self.denoise, bool), f"--denoise={self.denoise}: use True or False")
        require(
            self.denoise or self.sampler in ("ddim", *SDE_SAMPLERS),
            "--denoise=False: only --sampler=ddim, gddim and euler can end without it",
        )
        require(0 <= self.eta <= 1, f"--eta={self.eta}: use 0 (deterministic) to 1")
        check_seed(self.seed)

    def check_fits(self, diffusion: DiffusionConfig) -> None:
        """Raise UserError if the process has fewer steps than asked for, or none that the sampler knows."""
        require(
            diffusion.process == "vp" or self.sampler in SDE_SAMPLERS,
            f"--sampler={self.sampler}: samples --process=vp only; --process={diffusion.process} needs gddim or euler",
        )
        if self.sampler in ("ddim", "ddpm_strided", "analytic_dpm"):  # the others choose times between the steps
            require(
                self.steps <= diffusion.diffusion_steps,
                f"--sampler_steps={self.steps}: more than the {diffusion.diffusion_steps} diffusion steps (--T)",
            )

    def calls(self, diffusion: DiffusionConfig) -> int:
        """Network calls per image."""
        available = diffusion.diffusion_steps
        if self.sampler == "ddpm":
            return available
        times = self.steps
        if self.skip == "ddpm_torch_linear":  # every k-th time, k rounded down
            times = -(-available // (available // self.steps))
        if self.skip == "sddpm":  # t = 0 is appended where the list does not reach it
            times += available >= 2 * self.steps
        return times - (not self.denoise)


@dataclass(frozen=True)
class TrainConfig:
    """Optimization of a denoiser; stored in `ckpt.pt`, and compared with the flags when a run is resumed.

    batch_size: images per step over all processes. accumulate: parts in which a process goes through its share.
    ema_warmup: the averaged weights follow faster at first, see `diffusion.ema`.
    """

    dataset_type: str = "cifar10"
    lr: float = 2e-4
    lr_decay: str = "none"
    grad_clip: float = 1.0
    total_steps: int = 800_000
    warmup: int = 5000
    batch_size: int = 128
    accumulate: int = 1
    loss_type: str = "mse"
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    act_init: str = "calibrate"
    dropout: float = 0.1
    flip: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.lr > 0, f"--lr={self.lr}: must be positive")
        require(self.grad_clip > 0, f"--grad_clip={self.grad_clip}: must be positive")
        require(self.total_steps >= 1, f"--total_steps={self.total_steps}: use at least 1")
        require(self.warmup >= 0, f"--warmup={self.warmup}: use 0 or more")
        require(self.batch_size >= 1, f"--batch_size={self.batch_size}: use at least 1")
        check_accumulate(self.accumulate)
        require(self.loss_type in LOSS_TYPES, f"--loss_type={self.loss_type}: use one of {', '.join(LOSS_TYPES)}")
        require(0 <= self.ema_decay < 1, f"--ema_decay={self.ema_decay}: use a value in [0, 1)")
        check_seed(self.seed)
        if self.act_init != "calibrate":
            require(_positive(self.act_init), f"--act_init={self.act_init}: use calibrate or a positive number")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
