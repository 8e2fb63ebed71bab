"""`carry.json`: what carried calls of a sampler took, call by call, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..run.tables import counted
from .costs import CostFile, parse_costs
from .parse import MALFORMED, Json, clean, integer, listed_reports, number

MOST_CALLS = 5000


@dataclass(frozen=True)
class CarryFile:
    """costs: totals of the ANN, and of the spiking network from rest and carried. sampler: its name.

    spikes: per image and call, of each spiking network by its label. worst: the largest relative error of a call.
    """

    costs: CostFile
    sampler: str
    spikes: dict[str, tuple[float, ...]]
    worst: float

    @property
    def share(self) -> float:
        """Spikes of the carried network, of those from rest; nan if not both are known."""
        totals = [sum(series) for series in self.spikes.values()]
        return totals[1] / totals[0] if len(totals) == 2 and totals[0] else math.nan


def parse_carry(raw: Json, name: str, notes: list[str]) -> CarryFile | None:
    """The content of a file that `SNN_conversion.py --carry` wrote; None, with a note, for what makes no sense."""
    costs = parse_costs(raw, name, notes)
    listed = listed_reports(raw, name, [])
    if costs is None or listed is None:
        return None
    try:
        errors = [number(error) for error in raw["errors"][:MOST_CALLS]]
        spikes = {
            clean(report["label"], 60): tuple(number(value) for value in report["spikes_by_call"][:MOST_CALLS])
            for report in listed[:3]
            if report.get("spikes_by_call")
        }
        sampler = f"{clean(raw['sampler'], 20)}, {counted(integer(raw['calls']), 'call')}"
        return CarryFile(costs, sampler, spikes, max(errors, default=math.nan))
    except MALFORMED:
        notes.append(f"{name}: it is malformed and left out")
        return None
