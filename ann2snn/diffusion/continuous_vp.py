"""The process of DDPM between its integer times, for samplers that integrate over time (DEIS, gDDIM).

du = ½·(d log ᾱ/dt)·u dt + √(−d log ᾱ/dt) dw, with log ᾱ a piecewise cubic through the discrete values. Time is counted
in diffusion steps, as the network counts it, so that a network trained by DDPM can be sampled as it is.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..config import DiffusionConfig, require
from .linear_process import LinearProcess, Times, scalars
from .log_snr import log_alpha_curve
from .vp import VP


class ContinuousVP(LinearProcess):
    """Times run from 0 to diffusion_steps − 1. The final denoising takes the predicted x_0, as DDIM does."""

    can_denoise = True
    t_end, layer = 0.0, 1.0

    def __init__(self, config: DiffusionConfig) -> None:
        require(config.mean_type == "epsilon", f"--mean_type={config.mean_type}: gDDIM needs epsilon")
        require(config.diffusion_steps >= 2, f"--T={config.diffusion_steps}: gDDIM needs at least 2")
        self.config = config
        self.t_start = float(config.diffusion_steps - 1)
        self._log_alpha = log_alpha_curve(VP(config).alphas_bar)

    def alpha(self, t: Times) -> np.ndarray:
        """ᾱ_t."""
        return np.exp(self._log_alpha(t))

    def transition(self, t: Times, s: Times) -> np.ndarray:
        return scalars(np.exp((self._log_alpha(t) - self._log_alpha(s)) / 2))

    def covariance(self, t: Times) -> np.ndarray:
        return scalars(-np.expm1(self._log_alpha(t)))

    def factor(self, t: Times, kind: str = "R") -> np.ndarray:
        return np.sqrt(self.covariance(t))

    def drift(self, t: Times) -> np.ndarray:
        return scalars(self._log_alpha(t, 1) / 2)

    def diffusion(self, t: Times) -> np.ndarray:
        return scalars(-self._log_alpha(t, 1))

    def denoise(self, state: Tensor, eps: Tensor, t: float, factor: str = "R") -> Tensor:
        """(x_t − √(1−ᾱ_t)·ε)/√ᾱ_t."""
        alpha = float(self.alpha(t))
        return (state - (1 - alpha) ** 0.5 * eps) / alpha**0.5
