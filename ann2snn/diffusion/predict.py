"""What the network predicts (ε, x_0, the mean of x_{t−1}, or v) and how to turn one into another.

v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0 (Salimans, Ho, 2022): (x_t, v) is (x_0, ε) turned by an angle. All times t [N] may be real,
except where the mean of x_{t−1} is predicted, which only the discrete process defines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import require
from .learned_range import prediction
from .vp import VP, kept_on, per_image


def training_target(process: VP, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The regression target [N, C, H, W] for `mean_type`: ε, x_0, the posterior mean of x_{t−1} (eq. 7), or v."""
    mean_type = process.config.mean_type
    if mean_type == "epsilon":
        return noise
    if mean_type == "v":
        return velocity(process, x_0, noise, t)
    return x_0 if mean_type == "xstart" else process.posterior_mean(x_0, x_t, t)


def predicted_x0(process: VP, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 implied by the network's output at x_t, its first half where that tells a variance."""
    output, mean_type = prediction(output, x_t), process.config.mean_type
    if mean_type == "xstart":
        return output
    if mean_type == "epsilon":
        return x0_from_eps(process, output, x_t, t)
    if mean_type == "v":
        return x0_from_v(process, output, x_t, t)
    if t.is_floating_point():
        check_real_times(process)
    # invert the posterior mean: x_{t−1} = c1·x_0 + c2·x_t
    of_x_0, of_x_t = (
        kept_on(table, x_t.device)[t] for table in (process.posterior_mean_coef1, process.posterior_mean_coef2)
    )
    return per_image(1 / of_x_0, x_t) * output - per_image(of_x_t / of_x_0, x_t) * x_t


def predicted_eps(process: VP, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """ε implied by the network's output at x_t, its first half where that tells a variance."""
    output, mean_type = prediction(output, x_t), process.config.mean_type
    if mean_type == "epsilon":
        return output
    if mean_type == "v":
        return eps_from_v(process, output, x_t, t)
    return eps_from_x0(process, predicted_x0(process, output, x_t, t), x_t, t)


def check_real_times(process: VP) -> None:
    """Raise UserError if the network's prediction means nothing between the diffusion steps."""
    require(
        process.config.mean_type != "xprev",
        "--mean_type=xprev: x_{t−1} exists at whole diffusion steps only; use ddpm, ddpm_strided, ddim or analytic_dpm",
    )


def x0_from_eps(process: VP, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 = x_t/√ᾱ_t − √(1/ᾱ_t − 1)·ε."""
    inverse = 1 / process.alpha_bar_at(t)
    return per_image(torch.sqrt(inverse), x_t) * x_t - per_image(torch.sqrt(inverse - 1), x_t) * eps


def eps_from_x0(process: VP, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """ε = (x_t/√ᾱ_t − x_0) / √(1/ᾱ_t − 1)."""
    if process.alphas_bar[-1] == 0:  # the same without the pole, rounded differently
        alpha_bar = process.alpha_bar_at(t)
        return (x_t - per_image(torch.sqrt(alpha_bar), x_t) * x_0) / per_image(torch.sqrt(1 - alpha_bar), x_t)
    inverse = 1 / process.alpha_bar_at(t)
    return (per_image(torch.sqrt(inverse), x_t) * x_t - x_0) / per_image(torch.sqrt(inverse - 1), x_t)


def velocity(process: VP, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0."""
    alpha, sigma = _polar(process, eps, t)
    return alpha * eps - sigma * x_0


def x0_from_v(process: VP, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 = √ᾱ_t·x_t − √(1−ᾱ_t)·v."""
    alpha, sigma = _polar(process, x_t, t)
    return alpha * x_t - sigma * v


def eps_from_v(process: VP, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t."""
    alpha, sigma = _polar(process, x_t, t)
    return alpha * v + sigma * x_t


def _polar(process: VP, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = process.alpha_bar_at(t)
    return per_image(torch.sqrt(alpha_bar), like), per_image(torch.sqrt(1 - alpha_bar), like)
