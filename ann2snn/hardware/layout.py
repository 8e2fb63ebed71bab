"""Images on a coarser grid, the pixels of a square side by side among the channels.

NIR has no up-sampling. A network that has one is written on the grid of the coarsest map that is doubled: f² pixels of
channel c are channels c·f² … c·f² + f² − 1, row after row, as `torch.pixel_unshuffle` orders them. Then doubling copies
channels, and a convolution stays one, with its weights at other places (Shi et al., "Real-Time Single Image and Video
Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import require

MOST_WEIGHTS = 2**27  # of one layer: a gigabyte in double precision


@dataclass(frozen=True)
class Convolution:
    """weight [C_out, C_in, k, k], its stride and padding in pixels, and its dilation."""

    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def regridded(self, before: int, after: int) -> Convolution:
        """The same map between images whose squares of `before`² and `after`² pixels are channels.

        Its output must have 1/stride of its input's pixels. Raises UserError where the weights would be too many.
        """
        if before == after == 1:
            return self
        (stride, _), (padding, _), (dilation, _) = self.stride, self.padding, self.dilation
        step, kernel = stride * after // before, self.weight.shape[-1]
        places = {
            (i, k): divmod(stride * i + dilation * k - padding, before) for i in range(after) for k in range(kernel)
        }
        grids = [grid for grid, _ in places.values()]
        padded = max(-min(grids), max(grids) - step + 1, 0)
        size = padded + 1 + max(padded, *grids)
        c_out, c_in = self.weight.shape[:2]
        count = c_out * c_in * (after * before * size) ** 2
        check_size(count)
        weight = self.weight.new_zeros(c_out, after, after, c_in, before, before, size, size)
        for (i, a), (j, b) in itertools.product(places, repeat=2):
            (row, y), (column, x) = places[i, a], places[j, b]
            weight[:, i, j, :, y, x, row + padded, column + padded] = self.weight[:, :, a, b]
        weight = weight.reshape(c_out * after**2, c_in * before**2, size, size)
        return Convolution(weight, (step, step), (padded, padded))


def check_size(count: int) -> None:
    """Raise UserError where a layer's weights, as NIR wants them, are too many."""
    require(count <= MOST_WEIGHTS, f"NIR would need {count:,} weights for it: use a smaller network, or smaller images")


def dense(weight: Tensor, groups: int) -> Tensor:
    """The weight [C_out, C_in, k, k] of a convolution without groups that does what one with `groups` does."""
    if groups == 1:
        return weight
    blocks = weight.unflatten(0, (groups, -1))
    joined = weight.new_zeros(*blocks.shape[:2], groups, *blocks.shape[2:])
    for group in range(groups):
        joined[group, :, group] = blocks[group]
    return joined.flatten(2, 3).flatten(0, 1)


def doubled(channels: int, before: int, factor: int, like: Tensor) -> Tensor:
    """The weight of the 1×1 convolution that copies every pixel `factor`² times, the squares growing by `factor`."""
    after = before * factor
    weight = like.new_zeros(channels, after, after, channels, before, before)
    every = torch.arange(channels)
    for i, j in itertools.product(range(after), repeat=2):
        weight[every, i, j, every, i // factor, j // factor] = 1
    return weight.reshape(channels * after**2, channels * before**2, 1, 1)
