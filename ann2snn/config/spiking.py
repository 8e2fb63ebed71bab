"""How a converted network runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .checks import check_choice, check_int, make_plain, require

SCHEDULES = ("layer_sync", "stream")
STREAM_NORMS = ("cumulative", "per_step")
FROZEN = "frozen"  # a value that files of earlier versions may have
IF_NEURONS = ("bounded", "reference")
AUTO = "auto"
MAX_BURST = 127


def check_carry_steps(steps: int | str) -> int | str:
    """Return the time steps of a carried call, 1 or more, as an integer, or "auto". Raises UserError."""
    if isinstance(steps, str) and steps == AUTO:
        return AUTO
    steps = check_int(_typed(steps), "--carry_steps")
    require(1 <= steps <= 10_000, f"--carry_steps={steps}: use 1 to 10000 time steps, or auto")
    return steps


def _typed(steps: object) -> object:
    """Digits, as a command line gives them, as the number that they mean; anything else as it is."""
    return int(steps) if isinstance(steps, str) and steps.isascii() and steps.isdecimal() else steps


@dataclass(frozen=True)
class SpikingConfig:
    """How a converted network runs; see docs/theory.md for what each choice costs.

    schedule: layer_sync, every layer goes to its levels at once, one after the other (layer-by-layer execution); or
    stream, all layers at once, by a spike a time step (step-by-step execution). signed: whether neurons may take
    spikes back.
    settle_steps: an integer ≥ 0, or "auto" (run on until no neuron fires). Only `stream` settles, and only where
    corrections die out.
    burst: most spikes that a neuron of a `stream` may send in a step from the window's last one on.
    stream_norm: what stands between neurons reads the running mean of its input (cumulative), or the currents of each
    step alone (per_step, as published). if_neuron: a level that follows its target, or the published neuron.
    """

    schedule: str = "layer_sync"
    signed: bool = True
    stream_norm: str = "cumulative"
    if_neuron: str = "bounded"
    settle_steps: int | str = 0
    burst: int = 1

    def __post_init__(self) -> None:
        make_plain(self)
        require(
            not (isinstance(self.stream_norm, str) and self.stream_norm == FROZEN),
            "--stream_norm=frozen: norms with fixed statistics were worse in every measurement and are gone; use "
            "cumulative, which is exact once it has settled (--settle_steps=auto)",
        )
        for name, allowed in (("schedule", SCHEDULES), ("stream_norm", STREAM_NORMS), ("if_neuron", IF_NEURONS)):
            check_choice(getattr(self, name), allowed, f"--{name}")
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
                "use cumulative",
            )
            require(
                self.if_neuron == "bounded",
                f"--settle_steps={self.settle_steps}: only --if_neuron=bounded is certain to stop firing",
            )

    def check_carrying(self) -> None:
        """Raise UserError where levels cannot be kept from call to call: what came before would leave traces."""
        require(self.signed, "carrying needs neurons that can take spikes back: use --signed (signed=True)")
        published = self.stream_norm != "cumulative" or self.if_neuron != "bounded"
        require(not published, "carrying needs stream_norm=cumulative and if_neuron=bounded: others do not forget")

    def changed(self, **changes: Any) -> SpikingConfig:
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
        if isinstance(value, str) and value == AUTO:
            return AUTO
        hint = f"--settle_steps={value}: use 0 to 10000, or auto"
        try:
            steps = check_int(_typed(value), "--settle_steps")
        except UserError:
            raise UserError(hint) from None
        require(0 <= steps <= 10_000, hint)
        return steps

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
