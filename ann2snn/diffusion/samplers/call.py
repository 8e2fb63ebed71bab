"""One network call, as every sampler makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..predict import eps_from_x0, predicted_eps, predicted_x0
from ..vp import VP

Denoiser = Callable[[Tensor, Tensor], Tensor]
StepHook = Callable[[float, Tensor], None]


def estimate(
    net: Denoiser,
    process: VP,
    x: Tensor,
    time: float,
    clip: bool,
    on_step: StepHook | None,
    keep_eps: bool = False,
) -> tuple[Tensor, Tensor]:
    """(x_0, ε) that the network predicts for x [N, C, H, W] at `time`; with `clip`, x_0 in [−1, 1] and ε to match.

    keep_eps: ε stays what the network predicts, even where x_0 was clipped.

    `on_step(time, x)` sees what the network is about to see. The network gets t [N] in int64 for an integer `time`,
    else in floating point, float32 at least.
    """
    output, t = answer(net, x, time, on_step)
    x_0 = predicted_x0(process, output, x, t)
    if not clip:
        return x_0, predicted_eps(process, output, x, t)
    clipped = x_0.clamp(-1, 1)
    eps = predicted_eps(process, output, x, t) if keep_eps else eps_from_x0(process, clipped, x, t)
    return clipped, eps


def answer(net: Denoiser, x: Tensor, time: float, on_step: StepHook | None) -> tuple[Tensor, Tensor]:
    """The network's output for x [N, C, H, W] at `time`, and t [N], the time as it is told; see `estimate`."""
    dtype = torch.long if isinstance(time, int) else torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), time, dtype=dtype, device=x.device)
    if on_step is not None:
        on_step(time, x)
    return net(x, t), t
