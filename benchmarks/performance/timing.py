"""Timing several things in one run, in interleaved order, with medians and spreads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Jobs = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}–{_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition of every job, job by job in the same rounds."""

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        """Seconds of one job."""
        return Spread.of(self.seconds[name])

    def ratio(self, above: str, below: str, factor: float = 1.0) -> Spread:
        """Quartiles of the rounds' own ratios of `above` over factor · `below`: neighbours in time are compared."""
        rounds = zip(self.seconds[above], self.seconds[below], strict=True)
        return Spread.of([a / (factor * b) for a, b in rounds])

    def row(self, name: str, below: str | None = None) -> list[object]:
        """Cells: milliseconds with quartiles and, against `below`, the ratio."""
        spread = self.spread(name)
        cells: list[object] = [str(Spread(*(1e3 * value for value in (spread.median, spread.low, spread.high))))]
        return cells if below is None else [*cells, str(self.ratio(name, below))]


def interleaved(jobs: Jobs, device: torch.device, repetitions: int, warmup: int) -> Times:
    """Run every job once a round, A B C A B C …: what else the machine does then falls on all alike.

    The first `warmup` rounds are not counted. Raises ValueError for fewer than 2 repetitions.
    """
    if repetitions < 2:
        raise ValueError(f"{repetitions} repetitions have no spread")
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for index in range(warmup + repetitions):
        for name, job in jobs.items():
            elapsed = timed(job, device)
            if index >= warmup:
                seconds[name].append(elapsed)
    return Times(seconds)


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: wall clock on a CPU, events on the stream of a GPU, which is idle before and after."""
    if device.type != "cuda":
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    job()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3
