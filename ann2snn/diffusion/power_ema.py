"""Power-function averages of a network's weights, and one of any width built from others after training.

At step t the average of exponent γ is ∫ τ^γ θ(τ) dτ / ∫ τ^γ dτ over (0, t], where θ(τ) are the weights of step ⌈τ⌉: its
profile has the same shape at every step, and forgets the beginning of a training of any length. σ_rel is the standard
deviation of that profile, as a share of t. The profiles of averages that were kept span others: the coefficients that
come closest to a wanted profile also build its average. Source: Karras et al., Analyzing and Improving the Training
Dynamics of Diffusion Models (2024), arXiv:2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..config import check_int, check_number, require
from ..config.training import LEAST_WIDTH, MOST_WIDTH

CUTOFF = 1e-11  # of the profiles' products: what is smaller says nothing in the snapshots' float32
COARSE = 8  # widths that a search begins with


class Profile(NamedTuple):
    """Which average: its width σ_rel, and the steps it covers."""

    sigma_rel: float
    step: int


def check_sigma_rel(value: object, flag: str = "--sigma_rel") -> float:
    """The value as a float, if a power-function average can have it as its width. Raises UserError."""
    sigma_rel = check_number(value, flag)
    require(LEAST_WIDTH <= sigma_rel <= MOST_WIDTH, f"{flag}={value}: use {LEAST_WIDTH} to {MOST_WIDTH}")
    return sigma_rel


def gamma_of(sigma_rel: float) -> float:
    """The exponent γ > 0 of the width √((γ + 1)/(γ + 3)) / (γ + 2), the standard deviation of (γ + 1)·τ^γ on [0, 1].

    16.97 for 0.05, 6.94 for 0.1. Raises UserError for a width that no such average has.
    """
    precision = check_sigma_rel(sigma_rel) ** -2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def power_decay_at(step: int, gamma: float) -> float:
    """Decay d of the update average ← d·average + (1 − d)·weights; 0 at the first, which keeps nothing of before.

    step: updates made before this one. Raises UserError unless it is a whole number from 0.
    """
    step = check_int(step, "EMA step")
    require(step >= 0, f"EMA step={step}: use 0 or more")
    return (step / (step + 1)) ** (gamma + 1)


def coefficients(kept: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """What to multiply the averages `kept` with, float64 [len(kept)], so that their sum is closest to `wanted`.

    They sum to 1, so that what never moved in training stays. Also the distance that is left between the profiles,
    relative to the norm of the wanted one; the average is off by at most as much of the weights' own norm over time.
    """
    products = _products(kept, kept)
    size = np.sqrt(np.diag(products))
    aim = _products(kept, [wanted])[:, 0] / size
    values, vectors = np.linalg.eigh(products / np.outer(size, size))
    sound = values > CUTOFF * values.max()
    inverse = (vectors[:, sound] / values[sound]) @ vectors[:, sound].T
    ones = 1 / size  # of coefficients of profiles of norm 1
    free, pull = inverse @ aim, inverse @ ones
    solution = (free + pull * (1 - ones @ free) / (ones @ pull)) / size
    norm = _products([wanted], [wanted])[0, 0]
    distance = solution @ products @ solution - 2 * solution @ (aim * size) + norm
    return solution, math.sqrt(max(distance, 0.0) / norm)


def _products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """∫ p·q dτ of every pair of profiles p(τ) = (γ + 1)·τ^γ / t^(γ + 1) on (0, t]."""
    g, h = (np.array([gamma_of(p.sigma_rel) for p in ps]) for ps in (first, second))
    s, t = (np.array([float(p.step) for p in ps]) for ps in (first, second))
    g, s = g[:, None], s[:, None]
    shorter = np.minimum(s, t)
    shares = g * np.log(shorter / s) + h * np.log(shorter / t)  # logarithms: t^γ would overflow
    return (g + 1) * (h + 1) / (g + h + 1) * np.exp(shares) * shorter / (s * t)


def search(figure: Callable[[float], float], rounds: int = 2) -> dict[float, float]:
    """σ_rel → its figure, which is better the lower; by width.

    Widths from 0.01 to 0.25 in equal ratios first, then `rounds` times one on either side of the best, half as far away
    as its neighbours. A figure that is not finite counts as the worst, infinity. Raises UserError where none is finite.
    """

    def ranked(width: float) -> float:
        value = figure(width)
        return value if math.isfinite(value) else math.inf

    figures = {round(float(width), 4): math.nan for width in np.geomspace(0.01, 0.25, COARSE)}
    figures = {width: ranked(width) for width in figures}
    require(min(figures.values()) < math.inf, "no width has a finite figure: the network has diverged")
    for _ in range(rounds):
        widths, best = sorted(figures), best_of(figures)
        place = widths.index(best)
        near = [widths[i] for i in (place - 1, place + 1) if 0 <= i < len(widths)]
        for width in (round(math.sqrt(best * other), 4) for other in near):
            if width not in figures:
                figures[width] = ranked(width)
    return dict(sorted(figures.items()))


def best_of(figures: dict[float, float]) -> float:
    """The σ_rel of the lowest figure, the narrowest of equals."""
    return min(sorted(figures), key=lambda width: figures[width])
