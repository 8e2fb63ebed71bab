"""What the exponential-integrator samplers need of a diffusion: a linear SDE du = F_t·u dt + G_t dw in closed form.

Every matrix is [*sites, n, n] in numpy float64, with leading axes of the times it was asked for. n channels of state
belong to one channel of data (CLD: position and velocity, n = 2; else n = 1), and all data channels share the matrix.
`sites` is () where all pixels share it too, or the pixel grid (blur diffusion: one 1×1 matrix per frequency).
K_t, with K_t·K_tᵀ = Σ_t, is the factor in which the network predicts the noise: score = −K_t^{−T}·ε.

Source of notation and of the factor R: gDDIM (Zhang, Tao, Chen, 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..config import require
from ..distributed.runtime import sent

Times = float | np.ndarray
ODE_TOLERANCE = 1e-11


class LinearProcess(ABC):
    """A diffusion whose kernels are Gaussian and known. Two processes are equal if class and config are.

    Attributes: config; n, channels of state per channel of data; sites; t_start and t_end, the largest time and the
    time at which sampling ends; t_min, the smallest time in training; layer, the width in t of the fastest changes near
    t = 0 (quadrature only); factors, the choices of K ("R": dR/dt = (F + ½GGᵀΣ⁻¹)R; "L": Cholesky); can_denoise,
    whether `denoise` is defined.
    """

    n = 1
    sites: tuple[int, ...] = ()
    factors: tuple[str, ...] = ("R",)
    can_denoise = False
    config: object
    t_start: float
    t_end: float
    t_min: float = 1e-5
    layer: float

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config == other.config

    def __hash__(self) -> int:
        return hash((type(self), self.config))

    # ---- closed forms, t and s floats or arrays [...] → [..., *sites, n, n] --------------------------------------

    @abstractmethod
    def transition(self, t: Times, s: Times) -> np.ndarray:
        """Ψ(t, s), which maps a state at time s to time t along du = F_t·u dt; t < s is allowed."""

    @abstractmethod
    def covariance(self, t: Times) -> np.ndarray:
        """Σ_t of p(u_t | x_0)."""

    @abstractmethod
    def factor(self, t: Times, kind: str = "R") -> np.ndarray:
        """K_t, R or Cholesky."""

    @abstractmethod
    def drift(self, t: Times) -> np.ndarray:
        """F_t."""

    @abstractmethod
    def diffusion(self, t: Times) -> np.ndarray:
        """G_t·G_tᵀ."""

    def breaks(self, t: float, s: float) -> np.ndarray:
        """Panel ends [K] from t to s (either may be the larger), narrow enough for Gauss-Legendre quadrature.

        Panels grow by half from one to the next, away from t = 0.
        """
        low, high = math.log(t + self.layer), math.log(s + self.layer)
        panels = 1 + math.ceil(abs(high - low) / math.log(1.5))
        inner = np.exp(np.linspace(low, high, panels + 1)[1:-1]) - self.layer
        return np.concatenate([[t], inner, [s]])

    # ---- states --------------------------------------------------------------------------------------------------

    def check_state(self, state: Tensor) -> None:
        """Raise UserError for a state [N, n·C, *S] that this process cannot have."""
        require(
            state.dim() >= 2 and state.shape[1] % self.n == 0,
            f"a state of shape {list(state.shape)}: channels must be a multiple of {self.n}",
        )

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor, factor: str = "R") -> Tensor:
        """p(u_t | x_0) as the network sees it: x_0 [N, C, *S], t [N], noise [N, n·C, *S] → Ψ·(x_0, 0) + K·noise.

        `noise` is what a network of that factor has to predict, all of it.
        """
        times = time_array(t)
        at_rest = torch.cat([x_0, *[torch.zeros_like(x_0)] * (self.n - 1)], dim=1)
        mean = self.apply(self.transition(times, np.zeros_like(times)), at_rest)
        return mean + self.apply(self.factor(times, factor), noise)

    def prior(self, noise: Tensor) -> Tensor:
        """Standard normal [N, n·C, *S] → a state at t_start."""
        self.check_state(noise)
        return noise

    def network_input(self, state: Tensor) -> Tensor:
        """What the network sees of a state."""
        return state

    def from_network(self, output: Tensor) -> Tensor:
        """The network's noise prediction in the state's coordinates."""
        return output

    def data(self, state: Tensor) -> Tensor:
        """The images or points [N, C, *S] of a state."""
        return state

    def denoise(self, state: Tensor, eps: Tensor, t: float, factor: str = "R") -> Tensor:
        """One last step from time t to clean data, as a state, by the noise prediction at t."""
        raise NotImplementedError(f"{type(self).__name__} has no final denoising step")

    def apply(self, matrix: np.ndarray, state: Tensor) -> Tensor:
        """matrix [*sites, n, n], or one per image [N, *sites, n, n], times state [N, n·C, *S], in the state's dtype."""
        weights = sent(torch.as_tensor(matrix, dtype=state.dtype), state.device)
        if weights.dim() == len(self.sites) + 2:
            weights = weights.unsqueeze(0)
        weights = weights.movedim((-2, -1), (1, 2))  # [N or 1, n, n, *sites]
        pixels = weights.shape[3:] or [1] * (state.dim() - 2)
        weights = weights.reshape(len(weights), self.n, self.n, 1, *pixels)
        parts = state.unflatten(1, (self.n, -1)).unsqueeze(1)  # [N, 1, n, C, *S]
        # Not a matmul: at reduced matmul precision, coefficients of 1e4 that cancel would ruin the step.
        return (weights * parts).sum(dim=2).flatten(1, 2)

    def score(self, eps: Tensor, t: Tensor, factor: str = "R") -> Tensor:
        """∇ log p(u_t) = −K_t^{−T}·ε for eps [N, n·C, *S] in the state's coordinates, t [N]."""
        inverse = np.linalg.inv(self.factor(time_array(t), factor))
        return -self.apply(np.swapaxes(inverse, -1, -2), eps)

    # ---- stochastic gDDIM ----------------------------------------------------------------------------------------

    def contraction(self, t: float, s: float, lam: float) -> np.ndarray:
        """X [*sites, n, n] with Ψ̂(t, s) = R_t·X·R_s⁻¹, where Ψ̂ is the transition of F + (1+λ²)/2·GGᵀΣ⁻¹ and t ≤ s.

        dX/dτ = λ²/2·R⁻¹GGᵀR^{−T}·X from X = 1 at s. X = 1 at λ = 0; at λ = 1 it is R_tᵀ·Ψ(t,s)^{−T}·R_s^{−T}.
        """
        one = np.eye(self.n)
        if lam == 0:
            return np.broadcast_to(one, (*self.sites, self.n, self.n)).copy()
        exact = np.linalg.solve(self.factor(s), self.transition(s, t) @ self.factor(t)).swapaxes(-1, -2)
        if lam == 1:
            return exact
        if self.n == 1:  # numbers commute, and the exponent comes out
            return exact**lam**2
        return self._integrated_contraction(t, s, lam)

    def _integrated_contraction(self, t: float, s: float, lam: float) -> np.ndarray:
        def rate(log_time: float, flat: np.ndarray) -> np.ndarray:
            now = math.exp(log_time) - self.layer
            inverse = np.linalg.inv(self.factor(now))
            slope = lam**2 / 2 * inverse @ self.diffusion(now) @ inverse.T @ flat.reshape(self.n, self.n)
            return (now + self.layer) * slope.ravel()

        span = (math.log(s + self.layer), math.log(t + self.layer))
        one = np.eye(self.n).ravel()
        solution = solve_ivp(rate, span, one, method="DOP853", rtol=ODE_TOLERANCE, atol=ODE_TOLERANCE)
        return solution.y[:, -1].reshape(self.n, self.n)


def scalars(values: np.ndarray) -> np.ndarray:
    """Numbers [...] as 1×1 matrices [..., 1, 1]."""
    return np.asarray(values, dtype=np.float64)[..., None, None]


def time_array(t: Tensor) -> np.ndarray:
    """Times [N] of a batch as numpy float64."""
    return t.detach().double().cpu().numpy()
