"""The diffusion process."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from .checks import check_bool, check_choice, check_diffusion_steps, check_int, check_number, make_plain, require
from .processes import PROCESSES, Kind, processes_with

MEAN_TYPES = ("epsilon", "xstart", "xprev", "v")
BETA_SCHEDULES = ("linear", "quad", "cosine", "sigmoid", "const", "warmup10", "warmup50", "jsd")
LEARNED = "learned_range"  # the network tells the variance, see `diffusion.learned_range`
VAR_TYPES = ("fixedlarge", "fixedsmall", LEARNED)


@dataclass(frozen=True)
class DiffusionConfig:
    """The process: DDPM's (Ho et al., 2020) with its betas, what is predicted and which variance; or another.

    process: "vp" is DDPM's; "cld" (critically damped Langevin) and "blur" run in continuous time, predict noise and
    read diffusion_steps as the range of times that the network is told. factor: which K of CLD the network predicts.
    linear_first: the network learns what the best linear prediction of the noise leaves, see `diffusion.precondition`.
    var_type: the variance of a step of DDPM, β ("fixedlarge"), β̃ ("fixedsmall"), or what the network tells.
    schedule: how the betas grow, see `diffusion.schedules`; linear, quad, const and the warm-ups read beta_1 and
    beta_T, cosine reads cosine_offset, sigmoid the three sigmoid settings, jsd nothing.
    zero_terminal_snr: rescale it so that it ends in pure noise (Lin et al., arXiv 2305.08891).
    autoencoder: the identity (`latent.Autoencoder`) of the one in whose latent space the process runs, "" on images.
    There, a side of a latent times `downscale` is that of its image, which has `decoded_channels`.
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
    zero_terminal_snr: bool = False
    autoencoder: str = ""
    downscale: int = 1
    decoded_channels: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "diffusion_steps", check_int(self.diffusion_steps, "--T"))
        check_diffusion_steps(self.diffusion_steps)
        for name in ("beta_1", "beta_T"):
            check_number(getattr(self, name), f"--{name}")
        require(
            0 < self.beta_1 <= self.beta_T < 1,
            f"--beta_1={self.beta_1}, --beta_T={self.beta_T}: need 0 < beta_1 <= beta_T < 1",
        )
        check_choice(self.mean_type, MEAN_TYPES, "--mean_type")
        self._check_variance()
        self._check_schedule()
        check_choice(self.process, PROCESSES, "--process")
        self._check_terminal()
        self._check_latents()
        check_choice(self.factor, ("R", "L"), "--cld_factor")
        takes = self.kind.takes
        message = f"--cld_factor={self.factor}: only --process={processes_with('factor')} has one"
        require(self.factor == "R" or "factor" in takes, message)
        require(isinstance(self.linear_first, bool), f"--linear_first={self.linear_first}: use True or False")
        message = f"--linear_first: only for --process={processes_with('linear_first')}, and with --cld_factor=R"
        require(not self.linear_first or ("linear_first" in takes and self.factor == "R"), message)
        if not self.whole_steps:
            require(
                (self.schedule, self.mean_type) == ("linear", "epsilon"),
                f"--process={self.process}: has its own schedule and predicts noise; drop "
                f"--beta_schedule={self.schedule} and --mean_type={self.mean_type}",
            )
            require(self.diffusion_steps >= 2, f"--T={self.diffusion_steps}: --process={self.process} needs at least 2")

    @property
    def kind(self) -> Kind:
        return PROCESSES[self.process]

    @property
    def whole_steps(self) -> bool:
        """Whether the process is DDPM's, of whole diffusion steps, and not one in continuous time."""
        return self.kind.whole_steps

    def _check_variance(self) -> None:
        check_choice(self.var_type, VAR_TYPES, "--var_type")
        if self.var_type == LEARNED:
            check_choice(self.process, PROCESSES, "--process")
            only = f"--var_type={LEARNED}: only for --process={processes_with(LEARNED)}, not {self.process}"
            require(LEARNED in self.kind.takes, only)
            require(not self.autoencoder, f"--var_type={LEARNED}: its loss is of 8-bit images; not with --autoencoder")

    def _check_schedule(self) -> None:
        name = self.schedule
        check_choice(name, BETA_SCHEDULES, "--beta_schedule")
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

    def _check_terminal(self) -> None:
        check_bool(self.zero_terminal_snr, "--zero_terminal_snr")
        if self.zero_terminal_snr:
            processes = processes_with("zero_terminal_snr")
            message = f"--zero_terminal_snr: only for --process={processes}, not {self.process}"
            require("zero_terminal_snr" in self.kind.takes, message)
            require(
                self.diffusion_steps >= 2,
                f"--zero_terminal_snr: needs at least 2 steps, not --T={self.diffusion_steps}",
            )
            require(
                self.mean_type != "epsilon",
                "--zero_terminal_snr: the last step is pure noise, in which --mean_type=epsilon finds no image; "
                "use xstart, xprev or v",
            )

    def _check_latents(self) -> None:
        name, factor, channels = self.autoencoder, self.downscale, self.decoded_channels
        require(
            isinstance(name, str) and re.fullmatch("([0-9a-f]{16})?", name) is not None,
            f"autoencoder={str(name)[:40]!r}: an identity has 16 hexadecimal digits",
        )
        are_integers = type(factor) is int and type(channels) is int
        require(
            are_integers and (1 <= factor <= 64 and channels in (1, 3) if name else (factor, channels) == (1, 0)),
            f"downscale={factor}, decoded_channels={channels}: only with an autoencoder of images with 1 or 3",
        )
        require(not name or self.whole_steps, f"--autoencoder: needs --process=vp, not {self.process}")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
