"""What the network predicts (ε, x_0 or the mean of x_{t−1}) and how to turn one into another."""

from __future__ import annotations

import torch
from torch import Tensor

from .vp import VP, gather


def training_target(process: VP, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The regression target [N, C, H, W] for `mean_type`: ε, x_0, or the posterior mean of x_{t−1} (eq. 7)."""
    mean_type = process.config.mean_type
    if mean_type == "epsilon":
        return noise
    return x_0 if mean_type == "xstart" else process.posterior_mean(x_0, x_t, t)


def predicted_x0(process: VP, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 implied by the network's output at x_t."""
    mean_type = process.config.mean_type
    if mean_type == "xstart":
        return output
    if mean_type == "epsilon":
        return x0_from_eps(process, output, x_t, t)
    # invert the posterior mean: x_{t−1} = c1·x_0 + c2·x_t
    c1 = gather(1 / process.posterior_mean_coef1, t, x_t)
    ratio = gather(process.posterior_mean_coef2 / process.posterior_mean_coef1, t, x_t)
    return c1 * output - ratio * x_t


def x0_from_eps(process: VP, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 = x_t/√ᾱ_t − √(1/ᾱ_t − 1)·ε."""
    inverse = 1 / process.alphas_bar
    return gather(torch.sqrt(inverse), t, x_t) * x_t - gather(torch.sqrt(inverse - 1), t, x_t) * eps


def eps_from_x0(process: VP, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """ε = (x_t/√ᾱ_t − x_0) / √(1/ᾱ_t − 1)."""
    inverse = 1 / process.alphas_bar
    return (gather(torch.sqrt(inverse), t, x_t) * x_t - x_0) / gather(torch.sqrt(inverse - 1), t, x_t)
