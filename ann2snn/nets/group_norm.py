"""GroupNorm that keeps images channels-last while a network trains, where that is switched on.

PyTorch's own turns channels-last images into channels-first ones and back, twice a norm (7.8 of 43 GB that a training
step of the published CIFAR-10 network moves, counted on a CPU). Whether this one is quicker on a GPU has not been
measured, so it is off: ANN2SNN_GROUP_NORM=channels_last switches it on. Under `--compile` it fuses.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ..config import require

SWITCH = "ANN2SNN_GROUP_NORM"
VALUES = ("", "torch", "channels_last")


def keeps_layout() -> bool:
    """Whether norms of channels-last images stay so. Raises UserError for a bad ANN2SNN_GROUP_NORM."""
    value = os.environ.get(SWITCH, "")
    require(value in VALUES, f"{SWITCH}={value}: use torch or channels_last")
    return value == "channels_last"


def group_norm_channels_last(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` of x [N, C, H, W] in channels-last memory, which the result has as well; differentiable.

    Sums are taken in float32 at least, as PyTorch's are.
    """
    rows, channels, height, width = x.shape
    grouped = x.permute(0, 2, 3, 1).reshape(rows, height * width, groups, channels // groups)
    wide = grouped.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=(1, 3), correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    by_group = weight.to(wide).view(groups, -1), bias.to(wide).view(groups, -1)
    result = (wide - mean) * (scale * by_group[0]) + by_group[1]
    return result.reshape(rows, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """torch's, but for channels-last images in training mode where `keeps_layout()` when it is made."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__(groups, channels, eps)
        self.keeps_layout = keeps_layout()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.keeps_layout and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return group_norm_channels_last(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)
