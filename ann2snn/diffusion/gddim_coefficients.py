"""Time grids and step coefficients of gDDIM (Zhang, Tao, Chen, 2023), in float64, computed once before sampling.

A step from t to t' along the probability flow du = (F·u + ½GGᵀK^{−T}·ε) dt, with ε replaced by the polynomial through
its last values, is  u' = Ψ(t', t)·u + Σ_j C_j·ε_j,  C_j = ∫_t^{t'} ½Ψ(t', τ)·GGᵀ·K_τ^{−T}·l_j(τ) dτ,
l_j being the Lagrange polynomials of the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config import check_int, require
from .linear_process import LinearProcess

MAX_ORDER = 3
CORRECTORS = ("none", "pec", "pece")
NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)


@dataclass(frozen=True)
class Coefficients:
    """What every step needs; matrices are [*sites, n, n].

    grid: N + 1 falling times. transitions: N of Ψ. predictor: for each step the C_j, newest first. corrector: likewise
    with the node ahead first; empty for the last step and without a corrector. noise: N square roots of the noise
    covariance, or None in a deterministic sampler.
    """

    grid: tuple[float, ...]
    transitions: tuple[np.ndarray, ...]
    predictor: tuple[tuple[np.ndarray, ...], ...]
    corrector: tuple[tuple[np.ndarray, ...], ...]
    noise: tuple[np.ndarray, ...] | None


def time_grid(process: LinearProcess, intervals: int, power: float = 2.0) -> tuple[float, ...]:
    """intervals + 1 times from t_start down to t_end, evenly spaced in t^(1/power)."""
    require(check_int(intervals, "intervals") >= 1, f"{intervals} intervals: use at least 1")
    require(0 < power <= 100, f"time grid power={power}: use a value above 0, at most 100")
    roots = np.linspace(process.t_start ** (1 / power), process.t_end ** (1 / power), intervals + 1)
    return (process.t_start, *(roots[1:-1] ** power).tolist(), process.t_end)


def intervals_for(calls: int, corrector: str = "none", denoise: bool = False) -> int:
    """How many grid intervals take exactly `calls` network calls. Raises UserError if no number does.

    Prediction alone and "pec" take a call per interval, "pece" two but for the last; denoising takes one more.
    """
    remaining = check_int(calls, "sampler steps") - int(denoise)
    require(remaining >= 1, f"{calls} network calls: use at least {1 + int(denoise)}" + (" when denoising" * denoise))
    if corrector == "pece":
        require(
            remaining % 2 == 1, f"{calls} network calls: corrector=pece needs an {'even' if denoise else 'odd'} number"
        )
        return (remaining + 1) // 2
    return remaining


def check_options(process: LinearProcess, intervals: int, order: int, factor: str, corrector: str, lam: float) -> None:
    """Raise UserError for a combination that gDDIM does not define."""
    check_int(order, "order")
    require(0 <= order <= MAX_ORDER, f"order={order}: use 0 to {MAX_ORDER}")
    require(order < intervals, f"order={order}: needs a history of {order + 1} intervals, the grid has {intervals}")
    require(factor in process.factors, f"factor={factor}: use {' or '.join(process.factors)}")
    require(corrector in CORRECTORS, f"corrector={corrector}: use one of {', '.join(CORRECTORS)}")
    require(0 <= lam <= 10, f"lambda={lam}: use 0 (deterministic) to 10")
    if lam > 0:
        require(corrector == "none", f"corrector={corrector}: only the deterministic sampler has one; use lambda=0")
        require(order == 0, f"order={order}: the stochastic sampler does not extrapolate; use order=0 or lambda=0")
        require(factor == "R", f"factor={factor}: the stochastic sampler needs R; use lambda=0")


def check_grid(process: LinearProcess, grid: Sequence[float]) -> tuple[float, ...]:
    """Falling times within the process, as a tuple of floats. Raises UserError."""
    grid = tuple(float(t) for t in grid)
    require(len(grid) >= 2, f"a time grid of {len(grid)} values: give at least 2")
    require(all(later < earlier for earlier, later in zip(grid, grid[1:], strict=False)), "time grid: must fall")
    require(
        0 <= grid[-1] and grid[0] <= process.t_start,
        f"time grid from {grid[0]:g} to {grid[-1]:g}: must lie in [0, {process.t_start:g}]",
    )
    return grid


def gddim_coefficients(
    process: LinearProcess,
    grid: Sequence[float],
    order: int = 2,
    factor: str = "R",
    corrector: str = "none",
    lam: float = 0.0,
) -> Coefficients:
    """All steps along `grid`, from the first time to the last.

    order: degree q of the predictor's polynomial; step i uses min(i, q), as there is no older history. (The paper's
    "q-step" counts evaluations, q + 1.) The corrector's polynomial has one node more, the predicted state.
    Raises UserError as `check_grid` and `check_options` do. The result is kept for the next call.
    """
    grid = check_grid(process, grid)
    check_options(process, len(grid) - 1, order, factor, corrector, lam)
    return _coefficients(process, grid, order, factor, corrector, float(lam))


@lru_cache(maxsize=4)
def _coefficients(
    process: LinearProcess, grid: tuple[float, ...], order: int, factor: str, corrector: str, lam: float
) -> Coefficients:
    steps = len(grid) - 1
    predictor: list[tuple[np.ndarray, ...]] = []
    corrected: list[tuple[np.ndarray, ...]] = []
    for i in range(steps):
        nodes = grid[i - min(i, order) : i + 1][::-1]
        if lam > 0:
            predictor.append((_stochastic_mean(process, grid[i + 1], grid[i], lam),))
        else:
            predictor.append(step_coefficients(process, grid[i + 1], grid[i], nodes, factor))
        ahead = corrector != "none" and i < steps - 1
        corrected.append(
            step_coefficients(process, grid[i + 1], grid[i], (grid[i + 1], *nodes), factor) if ahead else ()
        )
    pairs = list(zip(grid[1:], grid, strict=False))
    return Coefficients(
        grid=grid,
        transitions=tuple(process.transition(t, s) for t, s in pairs),
        predictor=tuple(predictor),
        corrector=tuple(corrected),
        noise=tuple(noise_factor(process, t, s, lam) for t, s in pairs) if lam > 0 else None,
    )


def step_coefficients(
    process: LinearProcess, t: float, s: float, nodes: Sequence[float], factor: str = "R"
) -> tuple[np.ndarray, ...]:
    """C_j for the step from s to t, one per node: ∫_s^t ½Ψ(t, τ)·GGᵀ·K_τ^{−T}·l_j(τ) dτ.

    For K = R the integrand is d/dτ[Ψ(t, τ)R_τ]·l_j, so integration by parts leaves Ψ·R·l_j' to integrate: exact at
    degree 0, where C_0 = R_t − Ψ(t, s)·R_s, and free of GGᵀ.
    """
    points, weights = _quadrature(process.breaks(s, t))
    psi = process.transition(t, points)
    if factor == "R":
        inner, sign = psi @ process.factor(points), -1.0
    else:
        inverse = np.linalg.inv(process.factor(points, factor))
        inner, sign = psi @ process.diffusion(points) @ np.swapaxes(inverse, -1, -2) / 2, 1.0
    coefficients = []
    for j in range(len(nodes)):
        values = _lagrange_slope(nodes, j, points) if factor == "R" else _lagrange(nodes, j, points)
        total = sign * np.tensordot(weights * values, inner, axes=1)
        if factor == "R":
            ends = _lagrange(nodes, j, np.array([t, s]))
            total = total + ends[0] * process.factor(t) - ends[1] * process.transition(t, s) @ process.factor(s)
        coefficients.append(total)
    return tuple(coefficients)


def _stochastic_mean(process: LinearProcess, t: float, s: float, lam: float) -> np.ndarray:
    """[Ψ̂(t, s) − Ψ(t, s)]·R_s, what multiplies ε in the mean of a stochastic step."""
    return process.factor(t) @ process.contraction(t, s, lam) - process.transition(t, s) @ process.factor(s)


def noise_factor(process: LinearProcess, t: float, s: float, lam: float) -> np.ndarray:
    """A root of P = Σ_t − Ψ̂·Σ_s·Ψ̂ᵀ, the covariance of the stochastic step from s to t, [*sites, n, n].

    R_t·(1 − X·Xᵀ)^{1/2}, Ψ̂ = R_t·X·R_s⁻¹; the root is symmetric, rounding below 0 cut off."""
    contraction = process.contraction(t, s, lam)
    values, vectors = np.linalg.eigh(np.eye(process.n) - contraction @ np.swapaxes(contraction, -1, -2))
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :] @ np.swapaxes(vectors, -1, -2)
    return process.factor(t) @ root


def _quadrature(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and signed weights [K·20] over the panels between consecutive breaks."""
    half = np.diff(breaks)[:, None] / 2
    return (breaks[:-1, None] + half * (1 + NODES)).ravel(), (half * WEIGHTS).ravel()


def _lagrange(nodes: Sequence[float], j: int, tau: np.ndarray) -> np.ndarray:
    """l_j(τ), 1 at node j and 0 at the others."""
    result = np.ones_like(tau)
    for m, node in enumerate(nodes):
        if m != j:
            result = result * (tau - node) / (nodes[j] - node)
    return result


def _lagrange_slope(nodes: Sequence[float], j: int, tau: np.ndarray) -> np.ndarray:
    """dl_j/dτ."""
    total = np.zeros_like(tau)
    for k, left_out in enumerate(nodes):
        if k != j:
            others = [node for m, node in enumerate(nodes) if m not in (j, k)]
            product = np.ones_like(tau)
            for node in others:
                product = product * (tau - node) / (nodes[j] - node)
            total = total + product / (nodes[j] - left_out)
    return total
