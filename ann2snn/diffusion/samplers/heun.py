"""Heun's method on the probability flow, in the variables of Karras et al. (2022, algorithm 1 with no churn)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .grids import real_times
from .solver import Node, check_solver, ddim_step, node


def heun_times(process: VP, steps: int, skip: str = "logsnr") -> list[float]:
    """Times of the network calls of `sample_heun`. Raises UserError for options that do not fit the process."""
    nodes, single = _plan(process, steps, skip)
    times = [at.time for start, end in zip(nodes, nodes[1:], strict=False) for at in (start, end)]
    return [*(times[:-1] if single else times), nodes[-1].time]


@torch.no_grad()
def sample_heun(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    skip: str = "logsnr",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls along the probability flow; draws no noise.

    In x/α and σ/α the flow's derivative is ε: each step of two calls is the trapezoid rule, of second order. With an
    even `steps`, the last step before the image predicted at t = 0 has one call (Euler's, which is DDIM). `clip` limits
    the x_0 implied by every call. Raises UserError before the first call.
    """
    nodes, single = _plan(process, steps, skip)
    for i, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False)):
        slope = estimate(net, process, x, start.time, clip, on_step)[1]
        ahead = ddim_step(x, slope, start, end)
        if not (single and i == len(nodes) - 2):
            slope = (slope + estimate(net, process, ahead, end.time, clip, on_step)[1]) / 2
            ahead = ddim_step(x, slope, start, end)
        x = ahead
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def _plan(process: VP, steps: int, skip: str) -> tuple[list[Node], bool]:
    """The nodes between steps, and whether the last step has one call instead of two."""
    check_solver(process, steps, 1, 1)
    times = real_times(process, 1 + steps // 2, skip)
    return [node(process, time) for time in times], steps % 2 == 0
