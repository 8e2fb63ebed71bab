"""PNDM by linear multistep alone, known as PLMS (Liu et al., 2022, arXiv 2202.09778)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ...config import check_bool, check_int, require
from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .grids import real_times
from .solver import Node, check_solver, ddim_step, node

#: Adams and Bashforth's weights of the last predictions, newest first, for evenly spaced times.
WEIGHTS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm_times(process: VP, steps: int, lower_order_final: bool = False) -> list[float]:
    """Times of the network calls of `sample_pndm`. Raises UserError for options that do not fit the process."""
    check_bool(lower_order_final, "--lower_order_final")
    first, *later = (at.time for at in _nodes(process, steps))
    return [first, later[0], *later]


@torch.no_grad()
def sample_pndm(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    lower_order_final: bool = False,
    order: int = 4,
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls along the probability flow; draws no noise.

    Every step is DDIM's, with a combination of the last four predictions of ε; of fewer where there are not yet four.
    The first step is taken twice, with ε at its start and then with the mean of both ends, where the paper begins with
    three Runge-Kutta steps of four calls: so do latent diffusion's PLMS, and diffusers' PNDMScheduler with
    skip_prk_steps=True. There are `steps` − 1 times, evenly spaced, as the weights need it; the second has two calls.
    As DDIM's step weighs ε by σ/α and the combinations by t, the whole is of second order. The result is the image
    predicted at t = 0. `clip` limits the x_0 implied by every call. Raises UserError before the first call.

    lower_order_final: the last three steps combine three, two and one predictions, as multistep solvers of diffusers
    may. Four multiply independent errors of theirs, such as those of rounded activations, by 3.7, and nothing behind
    the last steps removes what that leaves in the image. order: of predictions combined at most, 4 in PNDM.
    """
    nodes, slopes = _nodes(process, steps), deque[Tensor](maxlen=order)
    for i, (start, end) in enumerate(zip(nodes, nodes[1:], strict=False), 1):
        slopes.appendleft(estimate(net, process, x, start.time, clip, on_step)[1])
        if i == 1:
            ahead = ddim_step(x, slopes[0], start, end)
            eps = (slopes[0] + estimate(net, process, ahead, end.time, clip, on_step)[1]) / 2
        else:
            order = min(len(slopes), len(nodes) - i) if lower_order_final else len(slopes)
            weighted = (weight * slope for weight, slope in zip(WEIGHTS[order], slopes, strict=False))
            eps = sum(weighted, start=torch.zeros_like(x))
        x = ddim_step(x, eps, start, end)
    return process.in_range(estimate(net, process, x, nodes[-1].time, clip, on_step)[0])


def _nodes(process: VP, steps: int) -> list[Node]:
    least = "the first step takes 2 network calls, and the image at its end another"
    require(check_int(steps, "--sampler_steps") >= 3, f"--sampler_steps={steps}: --sampler=pndm needs 3, as {least}")
    check_solver(process, steps, 1, 1)
    return [node(process, time) for time in real_times(process, steps - 1, "uniform")]
