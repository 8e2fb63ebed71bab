"""DPM-Solver++, singlestep, in the data prediction (Lu et al., 2022b): 2S (algorithm 1) and 3S."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .dpm_solver import STEPS, plan, stops
from .solver import Node


@torch.no_grad()
def sample_dpmpp_singlestep(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    order: int = 2,
    skip: str = "logsnr",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls along the probability flow; draws no noise.

    Steps and times are those of `sample_dpm_solver`, each in the predicted image instead of the predicted noise; order
    1 is DDIM for both. `clip` limits the image of every call. Raises UserError before the first call.
    """
    nodes, orders = plan(process, steps, order, skip)

    def predict(x: Tensor, at: Node) -> Tensor:
        return estimate(net, process, x, at.time, clip, on_step)[0]

    for i, p in enumerate(orders):
        visited = [*stops(process, nodes[i], nodes[i + 1], p), nodes[i + 1]]
        x = STEPS[p](predict, x, *map(_exchanged, visited))
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def _exchanged(at: Node) -> Node:
    """α and σ for each other, and λ turned around, as x_0 and ε are in x = α·x_0 + σ·ε: steps in ε become those in x_0.

    Where DPM-Solver's have α_t/α_s·x − σ_t·(e^h − 1)·ε, they have σ_t/σ_s·x − α_t·(e^−h − 1)·x_0.
    """
    return Node(at.time, alpha=at.sigma, sigma=at.alpha, lam=-at.lam)
