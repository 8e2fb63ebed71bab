"""The loss by diffusion time, in quarters of all times: a mean over all of them hides where a network is weak."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.process import Process
from ..distributed.runtime import sent
from ..distributed.world import World

QUARTERS = 4


def tally(process: Process, t: Tensor, losses: Tensor) -> Tensor:
    """Sum and number of the losses [N] in each quarter of the times t [N], earliest first: float64 [2, 4]."""
    quarter = sent((process.share(t) * QUARTERS).long().clamp(0, QUARTERS - 1), losses.device)
    found = torch.zeros(2, QUARTERS, dtype=torch.float64, device=losses.device)
    found[0].index_add_(0, quarter, losses.detach().double())
    found[1].index_add_(0, quarter, torch.ones_like(losses, dtype=torch.float64))
    return found


def means(found: Tensor, world: World) -> dict[str, float]:
    """The figures "loss_q1" (least noise) to "loss_q4", over all processes; but those without an image."""
    sums, counts = world.sum(found).tolist()
    return {f"loss_q{i + 1}": sums[i] / counts[i] for i in range(QUARTERS) if counts[i]}
