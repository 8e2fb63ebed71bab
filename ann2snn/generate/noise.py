"""Noise that a sampler starts from when it is not drawn: given, or between two draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import require
from ..diffusion.process import network_shape
from .subject import Sampled


class StartingWith:
    """The draws of `noise`, but the first is `x_T`; the others are what they would have been."""

    def __init__(self, x_T: Tensor, noise: Callable[[], Tensor]) -> None:
        self._first: Tensor | None = x_T
        self._noise = noise

    def __call__(self) -> Tensor:
        draw = self._noise()
        if self._first is not None:
            draw, self._first = self._first, None
        return draw


def check_noise(net: Sampled, x_T: Tensor, n: int) -> None:
    """Raise UserError unless x_T is finite noise, in floating point, for n images of `net`."""
    shape = [n, *network_shape(net)]
    tensor = isinstance(x_T, Tensor) and x_T.is_floating_point()
    description = f"{str(x_T.dtype).removeprefix('torch.')} {list(x_T.shape)}" if isinstance(x_T, Tensor) else type(x_T)
    require(tensor and list(x_T.shape) == shape, f"x_T: {description}, expected a floating-point tensor {shape}")
    dense = x_T.layout == torch.strided and not x_T.is_meta
    require(dense, f"x_T: a {'meta' if x_T.is_meta else 'sparse'} tensor, expected one that holds its values")
    require(bool(torch.isfinite(x_T).all()), "x_T: holds values that are not finite")


def slerp(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n points [n, …] on the great arc from a to b, both included, evenly spaced in angle (Shoemake, 1985).

    Noise of many values lies close to a sphere, which a straight line would leave. Lengths go from a's to b's as the
    formula has it; where both point the same way, the points are on the line.
    """
    share = torch.linspace(0, 1, n, dtype=torch.float64).view(-1, *[1] * a.dim())
    start, end = a.double(), b.double()
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-6:
        points = (1 - share) * start + share * end
    else:
        points = (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)
    return points.to(a.dtype)
