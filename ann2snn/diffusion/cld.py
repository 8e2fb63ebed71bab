"""Critically damped Langevin diffusion (Dockhorn, Vahdat, Kreis, 2022), every kernel in closed form.

A data coordinate x has a velocity v:  du = β(t)·[[0, 1/M], [−1, −Γ/M]]·u dt + [[0, 0], [0, √(2Γβ(t))]] dw,  u = (x, v),
with Γ² = 4M. A state has 2C channels: C of positions, then C of velocities. With ω = √(1/M) and B(t) = ∫β,
everything is a function of y = ωB alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import gammainc
from torch import Tensor

from ..config import require
from .continuous_time import ContinuousTime
from .linear_process import Times

PANELS, NODES = 60, 16  # of the quadrature for the angle; 30 panels already agree to 1e-14


@dataclass(frozen=True)
class CLDConfig:
    """Constants of gDDIM's CLD experiments.

    inverse_mass: 1/M. beta_0, beta_1: β(t) = beta_0 + beta_1·t. gamma: variance of the initial velocity over M.
    jitter: added to both initial variances. t_end: where sampling stops. t_min: smallest time in training.
    """

    inverse_mass: float = 4.0
    beta_0: float = 4.0
    beta_1: float = 0.0
    gamma: float = 0.04
    jitter: float = 1e-6
    t_end: float = 1e-3
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require(
                isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
                f"cld {name}={value}: must be a finite number",
            )
        require(self.jitter >= 1e-12, f"cld jitter={self.jitter}: use at least 1e-12")
        for name in ("inverse_mass", "beta_0"):
            require(getattr(self, name) > 0, f"cld {name}={getattr(self, name)}: must be positive")
        require(self.gamma >= 0, f"cld gamma={self.gamma}: must not be negative")
        require(self.beta_0 + self.beta_1 > 0, f"cld beta_1={self.beta_1}: beta_0 + beta_1 must be positive")
        for name in ("t_end", "t_min"):
            require(0 < getattr(self, name) < 1, f"cld {name}={getattr(self, name)}: use a value between 0 and 1")

    def to_dict(self) -> dict:
        return asdict(self)


class CLD(ContinuousTime):
    """Times run from 0 to 1. t of a batch is read on the CPU, so draw it there.

    The initial velocity is not drawn but folded into Σ_0 = diag(jitter, gamma·M + jitter), so that p(u_t | x_0) is
    N(Ψ(t, 0)·(x_0, 0), Σ_t).
    """

    n = state_channels = 2
    factors = ("R", "L")
    can_denoise = True
    t_start = 1.0

    config: CLDConfig

    def __init__(self, config: CLDConfig | None = None) -> None:
        self.config = config or CLDConfig()
        self.t_end = self.config.t_end
        self.t_min = self.config.t_min
        self.layer = min(1e-3, math.sqrt(self.config.jitter))
        self.mass = 1 / self.config.inverse_mass
        self.omega = math.sqrt(self.config.inverse_mass)
        self.friction = 2 * math.sqrt(self.mass)
        last = float(self.integrated_beta(1.0))
        self._breaks = np.concatenate([[0.0], np.geomspace(1e-7 * last, last, PANELS)])
        self._nodes, self._weights = np.polynomial.legendre.leggauss(NODES)
        pieces = self._angle_between(self._breaks[:-1], self._breaks[1:])
        self._angles = np.concatenate([[0.0], np.cumsum(pieces)])

    def initial_variance(self) -> tuple[float, float]:
        """Diagonal of Σ_0: position, velocity."""
        return self.config.jitter, self.config.gamma * self.mass + self.config.jitter

    def beta(self, t: Times) -> np.ndarray:
        return self.config.beta_0 + self.config.beta_1 * np.asarray(t, dtype=np.float64)

    def integrated_beta(self, t: Times) -> np.ndarray:
        """B(t) = ∫_0^t β."""
        t = np.asarray(t, dtype=np.float64)
        return self.config.beta_0 * t + self.config.beta_1 * t**2 / 2

    def drift(self, t: Times) -> np.ndarray:
        shape = np.array([[0.0, 1 / self.mass], [-1.0, -self.friction / self.mass]])
        return self.beta(t)[..., None, None] * shape

    def diffusion(self, t: Times) -> np.ndarray:
        return self.beta(t)[..., None, None] * np.diag([0.0, 2 * self.friction])

    def transition(self, t: Times, s: Times) -> np.ndarray:
        return self._transition(self.integrated_beta(t) - self.integrated_beta(s))

    def _transition(self, b: np.ndarray) -> np.ndarray:
        """Ψ over ∫β = b: exp of b·[[0, ω²], [−1, −2ω]], whose double eigenvalue is −ω (critical damping)."""
        y = self.omega * b
        return np.exp(-y)[..., None, None] * _matrix(1 + y, self.omega * y, -b, 1 - y)

    def covariance(self, t: Times) -> np.ndarray:
        return self._covariance(self.integrated_beta(t))

    def _covariance(self, b: np.ndarray) -> np.ndarray:
        """Ψ·Σ_0·Ψᵀ + ∫Ψ·GGᵀ·Ψᵀ; the integral, diag(1, M) − Ψ·diag(1, M)·Ψᵀ, is written without cancellation at 0.

        gammainc(3, z) = 1 − e^{−z}(1 + z + z²/2).
        """
        z = 2 * self.omega * b
        decay = np.exp(-z)
        base = gammainc(3, z)
        mixed = z * b * decay
        psi = self._transition(b)
        carried = psi @ np.diag(self.initial_variance()) @ np.swapaxes(psi, -1, -2)
        return carried + _matrix(base, mixed, mixed, self.mass * (base + 2 * z * decay))

    def rotation_angle(self, t: Times) -> np.ndarray:
        """θ_t with R_t = L_t·Rot(θ_t), Rot = [[cos, sin], [−sin, cos]]: ∫ (β/M)·√det Σ / Σ_xx, in radians."""
        b = self.integrated_beta(t)
        panel = np.clip(np.searchsorted(self._breaks, b, side="right") - 1, 0, PANELS - 1)
        return self._angles[panel] + self._angle_between(self._breaks[panel], b)

    def _angle_between(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        half = (high - low) / 2
        sigma = self._covariance(low[..., None] + half[..., None] * (1 + self._nodes))
        area = np.sqrt(sigma[..., 0, 0] * sigma[..., 1, 1] - sigma[..., 0, 1] ** 2)
        return half * ((area / (self.mass * sigma[..., 0, 0])) @ self._weights)

    def factor(self, t: Times, kind: str = "R") -> np.ndarray:
        """R_t, the solution of dR/dt = (F + ½GGᵀΣ⁻¹)R with diagonal R_0 (gDDIM), or the Cholesky factor L_t."""
        lower = np.linalg.cholesky(self.covariance(t))
        return lower @ self.rotation(t) if kind == "R" else lower

    def rotation(self, t: Times) -> np.ndarray:
        """Rot(θ_t), which also turns a noise prediction for R into one for L: ε_L = Rot(θ_t)·ε_R."""
        angle = self.rotation_angle(t)
        return _matrix(np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle))

    # ---- states --------------------------------------------------------------------------------------------------

    def prior(self, noise: Tensor) -> Tensor:
        """Standard normal [N, 2C, *S] → x ~ N(0, 1), v ~ N(0, M), the stationary law."""
        self.check_state(noise)
        return self.apply(np.diag([1.0, math.sqrt(self.mass)]), noise)

    def data(self, state: Tensor) -> Tensor:
        """The positions [N, C, *S]."""
        return state.chunk(2, dim=1)[0]

    def denoise(self, state: Tensor, eps: Tensor, t: float, factor: str = "R") -> Tensor:
        """The reverse SDE's drift over the remaining time, without noise: u − t·F·u + t·GGᵀ·score."""
        pull = self.diffusion(t) @ np.linalg.inv(self.factor(t, factor)).T
        return self.apply(np.eye(2) - t * self.drift(t), state) - self.apply(t * pull, eps)


def _matrix(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Four arrays [...] as [[a, b], [c, d]], [..., 2, 2]."""
    return np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)
