"""DPM-Solver, singlestep, in the noise prediction (Lu et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .grids import real_times
from .solver import Node, check_solver, ddim_step, node

Noise = Callable[[Tensor, Node], Tensor]


def dpm_solver_times(process: VP, steps: int, order: int = 2, skip: str = "logsnr") -> list[float]:
    """Times of the network calls of `sample_dpm_solver`. Raises UserError for options that do not fit the process."""
    nodes, orders = plan(process, steps, order, skip)
    times = [stop.time for i, p in enumerate(orders) for stop in stops(process, nodes[i], nodes[i + 1], p)]
    return [*times, nodes[-1].time]


@torch.no_grad()
def sample_dpm_solver(
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

    Steps of `order` calls each, then one of fewer where they do not divide steps − 1, then the image predicted at
    t = 0. A step of p calls spans p intervals of the grid `real_times(process, steps, skip)`; order 1 is DDIM at
    real times. `clip` limits the x_0 implied by every call. Raises UserError before the first call.
    """
    nodes, orders = plan(process, steps, order, skip)

    def predict(x: Tensor, at: Node) -> Tensor:
        return estimate(net, process, x, at.time, clip, on_step)[1]

    for i, p in enumerate(orders):
        x = STEPS[p](predict, x, *stops(process, nodes[i], nodes[i + 1], p), nodes[i + 1])
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def plan(process: VP, steps: int, order: int, skip: str) -> tuple[list[Node], list[int]]:
    """The nodes between steps and each step's order. Raises UserError for options that do not fit the process."""
    check_solver(process, steps, order, 3)
    full, remainder = divmod(steps - 1, order)
    orders = [order] * full + [remainder] * (remainder > 0)
    grid = real_times(process, steps, skip)
    ends = [sum(orders[:i]) for i in range(len(orders) + 1)]
    return [node(process, grid[end]) for end in ends], orders


def stops(process: VP, start: Node, end: Node, order: int) -> list[Node]:
    """Where a step calls the network: its start, and for order p at i/p of the way in λ."""
    inner = (start.lam + (end.lam - start.lam) * i / order for i in range(1, order))
    return [start, *(node(process, process.log_snr.time(lam)) for lam in inner)]


def _first(predict: Noise, x: Tensor, start: Node, end: Node) -> Tensor:
    return ddim_step(x, predict(x, start), start, end)


def _second(predict: Noise, x: Tensor, start: Node, middle: Node, end: Node) -> Tensor:
    """Algorithm 1 (r = 1/2), which takes ε at the midpoint for the whole step."""
    x_middle = ddim_step(x, predict(x, start), start, middle)
    return ddim_step(x, predict(x_middle, middle), start, end)


def _third(predict: Noise, x: Tensor, start: Node, middle: Node, later: Node, end: Node) -> Tensor:
    """Algorithm 2 (r_1 = 1/3, r_2 = 2/3): what ε adds in proportion to λ comes with σ·((e^h − 1)/h − 1)."""
    eps = predict(x, start)

    def bent(stop: Node, slope: Tensor) -> Tensor:
        """To `stop`, where ε has changed by `slope`."""
        h = stop.lam - start.lam
        return ddim_step(x, eps, start, stop) - stop.sigma * (math.expm1(h) / h - 1) * slope

    change = predict(ddim_step(x, eps, start, middle), middle) - eps
    x_later = bent(later, 2 * change)  # r_2/r_1
    return bent(end, (predict(x_later, later) - eps) * 1.5)  # 1/r_2


STEPS: dict[int, Callable[..., Tensor]] = {1: _first, 2: _second, 3: _third}
