"""What is diffused: points of the plane, or 8×8 pictures of a square; and how far samples are from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..config import require
from ..data import load_dataset, to_model_range
from ..data.toy import TOYS, toy_distance, toy_points
from .settings import IMAGES, NAMES, SIZE, SQUARES

SIDES = (3, 4)  # of a square
DIRECTIONS = 64


def draw(name: str, count: int, seed: int) -> Tensor:
    """`count` elements, float32 [count, *shape_of(name)]: points of unit variance, or pictures in [−1, 1].

    Fashion-MNIST has 8,000: they are drawn with replacement. Raises UserError for an unknown name.
    """
    require(name in NAMES, f"--points={name}: use one of {', '.join(NAMES)}")
    if name not in IMAGES:
        return toy_points(name, count, seed)
    pictures = (
        _squares() if name == SQUARES else to_model_range(load_dataset("fashion_mnist_10k", "", SIZE).all_images())
    )
    chosen = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed]))).integers(len(pictures), size=count)
    return pictures[torch.from_numpy(chosen)]


def _squares() -> Tensor:
    """Every bright square of 3×3 or 4×4 pixels on a dark ground: [61, 1, 8, 8] of −1 and 1."""
    corners = [(side, y, x) for side in SIDES for y in range(SIZE - side + 1) for x in range(SIZE - side + 1)]
    pictures = torch.full((len(corners), 1, SIZE, SIZE), -1.0)
    for picture, (side, y, x) in zip(pictures, corners, strict=True):
        picture[0, y : y + side, x : x + side] = 1
    return pictures


def distance(name: str, samples: Tensor) -> float | None:
    """Mean distance of `samples` to the noise-free set; None where it has no closed form (swissroll, fashion).

    Points: in units of the law before scaling. Squares: root mean square difference per pixel to the nearest of the 61.
    """
    if name == SQUARES:
        nearest = torch.cdist(samples.flatten(1).double(), _squares().flatten(1).double()).min(dim=1).values
        return float(nearest.mean()) / SIZE
    if name in IMAGES or TOYS[name].skeleton is None:
        return None
    return float(toy_distance(name, samples).mean())


def sliced_wasserstein(first: Tensor, second: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two equally large samples [N, *S] (Bonneel et al., 2015).

    √ of the mean of W₂² over 64 directions: evenly spaced ones in the plane, else random ones, always the same.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    if a.shape[1] == 2:
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
        directions = torch.stack([torch.cos(angles), torch.sin(angles)])
    else:
        draws = torch.randn(a.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        directions = draws / draws.norm(dim=0)
    gaps = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return float(gaps.square().mean().sqrt())
