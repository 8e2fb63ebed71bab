"""Nearest-neighbour upsampling by 2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary


def upsample_nearest(x: Tensor) -> Tensor:
    """x [N, C, H, W] → [N, C, 2H, 2W], every pixel four times.

    On a CPU torch's own goes through channels-last and back where images are small, which takes six times as long.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(upsample_nearest, (x,), x)
    if x.device.type != "cpu" or not x.is_contiguous():
        return F.interpolate(x, scale_factor=2, mode="nearest")
    n, c, h, w = x.shape
    rows = torch.stack((x, x), dim=-1).view(n, c, h, 1, 2 * w)
    return rows.expand(n, c, h, 2, 2 * w).reshape(n, c, 2 * h, 2 * w)
