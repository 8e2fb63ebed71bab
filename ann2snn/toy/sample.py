"""Sampling with the small denoiser: one result for each sampler and number of network calls."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import SampleConfig
from ..diffusion import VP, ImageNoise, analytic_statistics, check
from ..diffusion.process import run_sampler
from ..distributed.runtime import seed_from
from .sets import distance, draw, sliced_wasserstein
from .settings import IMAGE_SIZE, ToySettings

STATISTICS = 4096  # elements that analytic_dpm's statistics are gathered on


@dataclass(frozen=True)
class Result:
    """samples [N, *S] in the units of the data. calls: of the network, counted; seconds: of sampling them all.

    distance, wasserstein: see `toy.sets`; None for what is no finite number.
    """

    sampler: str
    steps: int
    calls: int
    seconds: float
    distance: float | None
    wasserstein: float | None
    samples: Tensor = field(repr=False)

    def to_dict(self) -> dict:
        """One line of the results file."""
        numbers = {"sampler": self.sampler, "steps": self.steps, "nfe": self.calls}
        return numbers | {
            "distance": self.distance,
            "sliced_wasserstein": self.wasserstein,
            "seconds": round(self.seconds, 3),
        }


class _Counted:
    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x, t)


def fresh(settings: ToySettings) -> Tensor:
    """As many elements of the data as are sampled, none of which the network was trained on (fashion: it was)."""
    return draw(settings.points, settings.samples, seed_from(settings.seed, 3))


@torch.no_grad()
def sample(net: nn.Module, settings: ToySettings, run: SampleConfig) -> Result:
    """`settings.samples` samples, each from the noise of its index."""
    counted, data = _Counted(net), fresh(settings)
    statistics = _statistics(net, settings, run)
    noise = ImageNoise(seed_from(settings.seed, 4), range(settings.samples), settings.state_shape, "cpu")
    start = time.perf_counter()
    samples = settings.scale * run_sampler(counted, settings.diffusion, IMAGE_SIZE, run, noise, statistics)
    seconds = time.perf_counter() - start
    finite = bool(samples.isfinite().all())
    return Result(
        sampler=run.sampler,
        steps=run.steps,
        calls=counted.calls,
        seconds=seconds,
        distance=_number(distance(settings.points, samples)) if finite else None,
        wasserstein=_number(sliced_wasserstein(samples, data)) if finite else None,
        samples=samples,
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _statistics(net: nn.Module, settings: ToySettings, run: SampleConfig) -> Tensor | None:
    if run.sampler != "analytic_dpm":
        return None
    process = VP(settings.diffusion)
    empty = torch.zeros(process.diffusion_steps, dtype=torch.float64)
    times = [int(time) for time in check(run.sampler, process, steps=run.steps, skip=run.skip, statistics=empty)]
    data = draw(settings.points, STATISTICS, seed_from(settings.seed, 5)) / settings.scale
    generator = torch.Generator().manual_seed(seed_from(settings.seed, 6))
    return analytic_statistics(net, process, [data], times, generator)
