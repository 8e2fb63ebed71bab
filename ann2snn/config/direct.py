"""How a directly trained spiking network runs."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from .checks import check_int, require

MOST_STEPS = 256
#: What flags name, known without torch: the keys of `kernels.SURROGATES` and `nets.sddpm.CORRECTIONS`.
SURROGATE_NAMES = ("atan", "arctan", "triangle", "rectangle")
CORRECTION_NAMES = ("shortcut", "tail", "readout", "dropout", "init")


@dataclass(frozen=True)
class DirectSpiking:
    """arch: name of `--arch`. spike_steps: time steps of a network call, S. threshold: of all neurons, which threshold
    guidance may have changed since the training. tsm: whether convolutions have a learned factor per time step (SDM).

    Raises UserError for values that no network has.
    """

    arch: str
    spike_steps: int
    threshold: float = 1.0
    tsm: bool = False

    def __post_init__(self) -> None:
        plain = isinstance(self.arch, str) and re.fullmatch("[a-z0-9_]{1,20}", self.arch) is not None
        require(plain, "--arch: not a plain word")
        object.__setattr__(self, "spike_steps", check_int(self.spike_steps, "--timestep"))
        require(1 <= self.spike_steps <= MOST_STEPS, f"--timestep={self.spike_steps}: use 1 to {MOST_STEPS}")
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        require(number and 0 < self.threshold < math.inf, "--threshold: must be a positive number")
        require(isinstance(self.tsm, bool), "--tsm: use True or False")

    @property
    def name(self) -> str:
        """Such as "SDDPM"; with TSM that network is called SDM."""
        return "SDM" if self.tsm else self.arch.upper()

    @property
    def steps_label(self) -> str:
        """Such as "4 steps"."""
        return f"{self.spike_steps} step{'' if self.spike_steps == 1 else 's'}"

    @property
    def label(self) -> str:
        """Short name for tables, such as "SDDPM 4 steps", with the threshold where it is not 1."""
        threshold = "" if self.threshold == 1 else f", threshold {self.threshold:g}"
        return f"{self.name} {self.steps_label}{threshold}"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
