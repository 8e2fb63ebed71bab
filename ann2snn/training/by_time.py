"""The loss by diffusion time, in quarters of all times: a mean over all of them hides where a network is weak."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.process import Process
from ..distributed.runtime import sent
from ..distributed.world import World
from ..run.lines import LOSS_QUARTERS

QUARTERS = len(LOSS_QUARTERS)


def tally(process: Process, t: Tensor, losses: Tensor) -> Tensor:
    """Sum and number of the losses [N] in each quarter of the times t [N], earliest first: float64 [2, 4]."""
    quarter = sent((process.share(t) * QUARTERS).long().clamp(0, QUARTERS - 1), losses.device)
    sums_and_counts = torch.zeros(2, QUARTERS, dtype=torch.float64, device=losses.device)
    sums_and_counts[0].index_add_(0, quarter, losses.detach().double())
    sums_and_counts[1].index_add_(0, quarter, torch.ones_like(losses, dtype=torch.float64))
    return sums_and_counts


def means(sums_and_counts: Tensor, world: World) -> dict[str, float]:
    """The figures "loss_q1" (least noise) to "loss_q4", over all processes; but those without an image."""
    sums, counts = world.sum(sums_and_counts).tolist()
    return {name: sums[i] / counts[i] for i, name in enumerate(LOSS_QUARTERS) if counts[i]}
