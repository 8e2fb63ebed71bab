"""UniPC, multistep, in the data prediction with B₂(h) = e^h − 1 (Zhao et al., 2023)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .dpmpp import dpmpp_times
from .solver import Node, node


@torch.no_grad()
def sample_unipc(
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

    Each step is predicted from the last `order` calls, and taken again (UniC) once the call at its end is known, which
    costs none and gains an order. The first and the last steps are of lower order, as in the authors' code. The result
    is the image predicted at t = 0. `clip` limits the x_0 of every call. Raises UserError before the first call.
    """
    nodes = [node(process, time) for time in dpmpp_times(process, steps, order, skip)]
    images: deque[Tensor] = deque(maxlen=order)
    before, used = x, 0  # the state that the last step began in, and its order
    for i, end in enumerate(nodes[1:], 1):
        start = nodes[i - 1]
        image = estimate(net, process, x, start.time, clip, on_step)[0]
        if used:
            x = _step(before, images, nodes[i - 1 - used : i], used, image)
        images.appendleft(image)
        before, used = x, min(order, i, len(nodes) + 1 - i)
        x = _step(x, images, [*nodes[i - used : i], end], used)
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def _step(
    x: Tensor, images: Sequence[Tensor], nodes: Sequence[Node], order: int, ahead: Tensor | None = None
) -> Tensor:
    """From x at nodes[-2] to nodes[-1]. images: newest first, the first at nodes[-2].

    ahead: the image predicted at nodes[-1] (UniC), without which the step extrapolates (UniP).
    """
    start, end = nodes[-2], nodes[-1]
    h = end.lam - start.lam
    ratios = [(nodes[-2 - i].lam - start.lam) / h for i in range(1, order)]
    slopes = [(image - images[0]) / ratio for image, ratio in zip(list(images)[1:order], ratios, strict=True)]
    if ahead is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, ahead - images[0]]
    grown = end.alpha * -math.expm1(-h)
    x = end.sigma / start.sigma * x + grown * images[0]
    for weight, slope in zip(_weights(ratios, h), slopes, strict=True):
        x = x + grown * weight * slope
    return x


def _weights(ratios: Sequence[float], h: float) -> list[float]:
    """Of the slopes to the nodes at ratios·h: those that are exact for polynomials in λ (theorem 3.1).

    One slope has the weight ½ instead, which for B₂ leaves the order as it is (the paper's appendix F).
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    moments, phi, factorial = [], math.expm1(-h) / -h - 1, 1
    for power in range(1, len(ratios) + 1):
        moments.append(phi * factorial / math.expm1(-h))
        factorial *= power + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(moments)).tolist()
