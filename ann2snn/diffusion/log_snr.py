"""A discrete process between its integer times: log ᾱ(t), half the log signal-to-noise ratio λ(t), and t(λ)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator, PPoly
from scipy.optimize import brentq
from torch import Tensor

from ..config import require
from ..distributed.runtime import sent


def log_alpha_curve(alphas_bar: Tensor) -> PPoly:
    """log ᾱ as a falling piecewise cubic through the discrete values [K] at t = 0..K−1, K ≥ 2, all positive.

    A cubic spline; where that would rise between two values (as at the limited end of the sigmoid schedule), the
    monotone interpolation of Fritsch and Carlson (1980). Both have a continuous derivative.
    """
    times, values = np.arange(len(alphas_bar)), np.log(alphas_bar.numpy())
    spline = CubicSpline(times, values)
    turns = spline.derivative().roots(extrapolate=False)
    return spline if len(turns) == 0 else PchipInterpolator(times, values)


class LogSNR:
    """λ(t) = ½·log(ᾱ/(1−ᾱ)) of real t in [0, K−1], falling, and its inverse (Lu et al., 2022), in float64."""

    def __init__(self, alphas_bar: Tensor) -> None:
        """ᾱ of a process, float64 [K]. Raises UserError if K is 1 or the last ᾱ is 0 (λ is not finite)."""
        require(len(alphas_bar) >= 2, f"--T={len(alphas_bar)}: times between the steps need at least 2")
        require(float(alphas_bar[-1]) > 0, "the process ends at ᾱ = 0, λ = −∞: use ddpm, ddpm_strided or ddim")
        require(float(alphas_bar[0]) < 1, "the first β is 0 in float64: use a larger --beta_1")
        self.last = float(len(alphas_bar) - 1)
        self.log_alpha_bar = log_alpha_curve(alphas_bar)
        self._knots = self.log_alpha_bar(self.log_alpha_bar.x)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}  # times and coefficients, by device

    def __call__(self, t: float | np.ndarray) -> np.ndarray:
        """λ(t)."""
        log_alpha = self.log_alpha_bar(t)
        return (log_alpha - np.log(-np.expm1(log_alpha))) / 2

    def log_alpha_bar_on_device(self, t: Tensor) -> Tensor:
        """log ᾱ(t) for t float64 [N] in [0, K−1], computed where t is: `log_alpha_bar` is the CPU's."""
        if t.device not in self._tables:
            times, coefficients = (
                torch.from_numpy(np.array(part)) for part in (self.log_alpha_bar.x, self.log_alpha_bar.c)
            )
            self._tables[t.device] = sent(times, t.device), sent(coefficients, t.device)
        times, coefficients = self._tables[t.device]
        piece = (torch.searchsorted(times, t, right=True) - 1).clamp(0, len(times) - 2)
        a, b, c, d = coefficients[:, piece]
        offset = t - times[piece]
        return ((a * offset + b) * offset + c) * offset + d

    def time(self, lam: float) -> float:
        """t(λ). Raises ValueError outside [λ(K−1), λ(0)]."""
        target = -np.logaddexp(0.0, -2 * lam)  # log ᾱ
        index = int(np.searchsorted(-self._knots, -target, side="right")) - 1
        index = min(max(index, 0), len(self._knots) - 2)
        # Rounding may put an end of the range just outside.
        for end in (index, index + 1):
            if abs(self._knots[end] - target) <= 1e-12 * abs(target):
                return float(end)
        return float(brentq(lambda t: self.log_alpha_bar(t) - target, index, index + 1, xtol=1e-14, rtol=1e-14))
