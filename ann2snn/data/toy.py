"""Points in the plane, whose density can be seen and scored without an image metric.

Point i of seed s is the same however many are drawn. Every set is divided by the standard deviation of its law, per
axis; only the rings are also centred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import check_int, check_seed, require
from ..errors import UserError

RING_NOISE = 0.01 * math.sqrt(0.2)


@dataclass(frozen=True)
class Toy:
    """One law. raw: uniforms [N, 2] and standard normals [N, 2] → points [N, 2] before scaling.

    mean and std are per axis; points = (raw − mean)/std. skeleton: raw points [N, 2] → distance [N] of each, in raw
    units, to the set without its noise (nearest mode, nearest ring); None where it has no closed form.
    """

    raw: Callable[[np.ndarray, np.ndarray], np.ndarray]
    std: tuple[float, float]
    mean: tuple[float, float] = (0.0, 0.0)
    skeleton: Callable[[np.ndarray], np.ndarray] | None = None


def toy_points(name: str, count: int, seed: int = 0) -> Tensor:
    """`count` points of the law `name`, float32 [count, 2], on the CPU. Raises UserError for an unknown name."""
    toy = _toy(name)
    count = check_int(count, "toy points")
    require(0 <= count <= 10**8, f"{count} toy points: use 0 to 100000000")
    check_seed(seed)
    uniform, normal = (np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, k]))) for k in (0, 1))
    points = toy.raw(uniform.random((count, 2)), normal.standard_normal((count, 2)))
    return torch.from_numpy(((points - toy.mean) / toy.std).astype(np.float32))


def toy_distance(name: str, points: Tensor) -> Tensor:
    """Distance [N] of scaled points [N, 2] to the noise-free set, in units before scaling.

    Raises UserError for an unknown name, or for a law whose set has no closed-form distance (swissroll).
    """
    toy = _toy(name)
    if toy.skeleton is None:
        raise UserError(f"{name}: the distance to it has no closed form")
    raw = points.detach().double().cpu().numpy() * toy.std + toy.mean
    return torch.from_numpy(toy.skeleton(raw))


def _toy(name: str) -> Toy:
    require(name in TOYS, f"{name}: no such point set; use one of {', '.join(TOYS)}")
    return TOYS[name]


def _modes(centres: np.ndarray, noise: float) -> Toy:
    """Equally likely Gaussians around centres [K, 2] of mean zero."""

    def raw(uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
        return centres[(uniform[:, 0] * len(centres)).astype(int)] + noise * normal

    def distance(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, None] - centres, axis=-1).min(axis=1)

    return Toy(raw, tuple(np.sqrt(centres.var(axis=0) + noise**2).tolist()), skeleton=distance)


def _rings(centres: np.ndarray) -> Toy:
    """Unit circles around centres [K, 2], each point moved by Gaussian noise."""

    def raw(uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
        angle = 2 * math.pi * uniform[:, 1]
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return centres[(uniform[:, 0] * len(centres)).astype(int)] + circle + RING_NOISE * normal

    def distance(points: np.ndarray) -> np.ndarray:
        return np.abs(np.linalg.norm(points[:, None] - centres, axis=-1) - 1).min(axis=1)

    std = np.sqrt(centres.var(axis=0) + 0.5 + RING_NOISE**2)
    return Toy(raw, tuple(std.tolist()), mean=tuple(centres.mean(axis=0).tolist()), skeleton=distance)


def _swissroll(noise: float = 0.25) -> Toy:
    """(a cos a, a sin a), a uniform in [1.5π, 4.5π]: scikit-learn's roll seen from its side.

    E[a²] = 39π²/4, E[a² cos 2a] = −1/2, E[a cos a] = 2 and E[a sin a] = 2/(3π) give the standard deviations.
    """

    def raw(uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
        angle = 1.5 * math.pi * (1 + 2 * uniform[:, 0])
        return angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) + noise * normal

    half = 39 * math.pi**2 / 8 + noise**2
    return Toy(raw, (math.sqrt(half - 1 / 4 - 4), math.sqrt(half + 1 / 4 - 4 / (9 * math.pi**2))))


_EIGHTHS = np.arange(8) * math.pi / 4
_FIVE = np.arange(-4.0, 5.0, 2.0)

TOYS: dict[str, Toy] = {
    "gaussian8": _modes(2 * np.stack([np.cos(_EIGHTHS), np.sin(_EIGHTHS)], axis=1), noise=0.02),
    "gaussian25": _modes(np.stack(np.meshgrid(_FIVE, _FIVE), axis=-1).reshape(25, 2), noise=0.05),
    "swissroll": _swissroll(),
    "rings": _rings(np.array([(-1.75, 0.75), (0.0, 0.75), (1.75, 0.75), (-1.05, -0.75), (1.05, -0.75)])),
}
