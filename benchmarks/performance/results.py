"""What a group of measurements hands over: rows of a table, and the cases that decide a target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from .plan import Plan
from .timing import Jobs, Spread, Times, interleaved


@dataclass(frozen=True)
class Bench:
    """Where and how large to measure."""

    plan: Plan
    device: torch.device

    def time(self, jobs: Jobs) -> Times:
        return interleaved(jobs, self.device, self.plan.repetitions, self.plan.warmup)


@dataclass(frozen=True)
class Case:
    """One measured ratio. label: at which setting. bound: its own limit, where the target's depends on the setting."""

    label: str
    ratio: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None

    @classmethod
    def of(cls, label: str, ratio: Spread, bound: float | None = None) -> Case:
        return cls(label, ratio.median, ratio.low, ratio.high, bound)


@dataclass
class Section:
    """A table and the cases, target name → cases, that were measured with it. note: how to read it."""

    title: str
    header: list[str]
    rows: list[list[object]] = field(default_factory=list)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
