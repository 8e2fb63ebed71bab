"""DPM-Solver++, multistep, in the data prediction (Lu et al., 2022b): 2M and 3M, and the 2M of its SDE."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .grids import real_times
from .solver import Node, check_solver, node


def dpmpp_times(process: VP, steps: int, order: int = 2, skip: str = "logsnr") -> tuple[float, ...]:
    """Times of the calls of `sample_dpmpp` and `sample_unipc`. Raises UserError for options that do not fit."""
    check_solver(process, steps, order, 3)
    return real_times(process, steps, skip)


def dpmpp_sde_times(process: VP, steps: int, order: int = 2, skip: str = "logsnr") -> tuple[float, ...]:
    """Times of the network calls of `sample_dpmpp_sde`. Raises UserError as `dpmpp_times`."""
    check_solver(process, steps, order, 2)
    return real_times(process, steps, skip)


@torch.no_grad()
def sample_dpmpp(
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

    The predicted image is extrapolated through the last `order` calls, fewer in the first steps, where an error is
    worth little (it shrinks with √ᾱ_T). The result is the image predicted at t = 0. 3M here is of third order; the
    authors' code and its copies halve the second derivative, which leaves the second. Raises UserError before the
    first call.
    """
    nodes = [node(process, time) for time in dpmpp_times(process, steps, order, skip)]
    images: deque[Tensor] = deque(maxlen=order)
    for i, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False)):
        images.appendleft(estimate(net, process, x, start.time, clip, on_step)[0])
        h = end.lam - start.lam
        x = end.sigma / start.sigma * x + end.alpha * -math.expm1(-h) * images[0]
        slope, bend = _derivatives(images, nodes[max(i + 1 - len(images), 0) : i + 1], h)
        if bend is not None and slope is not None:
            x = x + end.alpha * (1 + math.expm1(-h) / h) * slope
            x = x + end.alpha * (0.5 - (h + math.expm1(-h)) / h**2) * bend
        elif slope is not None:
            x = x + end.alpha * -math.expm1(-h) / 2 * slope
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


@torch.no_grad()
def sample_dpmpp_sde(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    order: int = 2,
    skip: str = "logsnr",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls along the reverse SDE.

    SDE-DPM-Solver++ of order 1 or 2M; one draw from `noise` per step but the last. Order 1 is `sample_ddpm_strided`
    with the small variance, at real times. Raises UserError before the first call.
    """
    nodes = [node(process, time) for time in dpmpp_sde_times(process, steps, order, skip)]
    images: deque[Tensor] = deque(maxlen=order)
    for i, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False)):
        images.appendleft(estimate(net, process, x, start.time, clip, on_step)[0])
        h = end.lam - start.lam
        gained = -math.expm1(-2 * h)
        slope, _ = _derivatives(images, nodes[max(i + 1 - len(images), 0) : i + 1], h)
        image = images[0] if slope is None else images[0] + slope / 2
        x = end.sigma / start.sigma * math.exp(-h) * x + end.alpha * gained * image
        x = x + end.sigma * gained**0.5 * noise()
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def _derivatives(images: deque[Tensor], nodes: list[Node], h: float) -> tuple[Tensor | None, Tensor | None]:
    """h·(first) and h²·(second derivative in λ) of the predicted image at the last node, None where history is short.

    images: newest first. nodes: theirs, oldest first.
    """
    if len(images) == 1:
        return None, None
    near = (nodes[-1].lam - nodes[-2].lam) / h
    slope = (images[0] - images[1]) / near
    if len(images) == 2:
        return slope, None
    far = (nodes[-2].lam - nodes[-3].lam) / h
    bend = 2 * (slope - (images[1] - images[2]) / far) / (near + far)
    return slope + near * bend / 2, bend
