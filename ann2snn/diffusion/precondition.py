"""The linear part of the noise prediction in closed form, so that the network learns the rest alone.

Near t = 1 the coefficients of CLD and of blurred frequencies are in the hundreds and cancel. A network that predicts
the noise directly is off by a hundredth there, and its samples leave the picture; an error of a hundredth of the rest
is harmless.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .linear_process import LinearProcess, time_array


class LinearFirst:
    """ε = A_t·u + s_t·net(u, t) for data of zero mean and unit variance, after Karras et al., 2022, section 5.

    With u = Ψ·u_0 + K·ε and S = Ψ·P·Ψᵀ + K·Kᵀ, A = Kᵀ·S⁻¹ is the best linear prediction of ε. P is 1 for the data and
    0 for velocities. What A leaves has the covariance 1 − Kᵀ·S⁻¹·K, whose mean variance is s², of CLD one number and
    of blur diffusion one for each frequency. `scale`: of the times that the network is told.
    """

    def __init__(self, net: Callable[[Tensor, Tensor], Tensor], process: LinearProcess, scale: float) -> None:
        self.net, self.process, self.scale = net, process, scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x [N, *S] as the network sees it, t [N] in its units → ε [N, *S]."""
        linear, spread = linear_prediction(self.process, time_array(t) / self.scale)
        residual = self.process.from_network(self.net(x, t))
        one = np.eye(self.process.n)
        eps = self.process.apply(linear, self.process.from_network(x))
        return self.process.network_input(eps + self.process.apply(spread[..., None, None] * one, residual))


def noise_weights(process: LinearProcess, t: Tensor) -> Tensor:
    """1 over the mean of s_t², [N] in float32, t [N] in [0, 1]: the loss of a silent network is then near 1."""
    variance = linear_prediction(process, time_array(t))[1] ** 2
    return torch.as_tensor(1 / variance.reshape(len(variance), -1).mean(axis=1), dtype=torch.float32)


def linear_prediction(process: LinearProcess, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A [N, *sites, n, n] and s [N, *sites] of `LinearFirst` at times t [N]."""
    factor, psi = process.factor(t), process.transition(t, np.zeros_like(t))
    transposed, data = np.swapaxes(factor, -1, -2), np.diag([1.0, *[0.0] * (process.n - 1)])
    total = psi @ data @ np.swapaxes(psi, -1, -2) + factor @ transposed
    linear = transposed @ np.linalg.inv(total)
    left = 1 - np.trace(linear @ factor, axis1=-2, axis2=-1) / process.n
    return linear, np.sqrt(np.maximum(left, 1e-8))
