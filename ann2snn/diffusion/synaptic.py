"""Synaptic current learning of FSDDIM (Watanabe et al., arXiv 2312.01742): a network on currents and its training loss.

The network maps currents [L·N, C, H, W], time outermost, to currents; an image is their mean over the time steps.
Sampling applies its step to each current alone, so the loss asks for more than the right mean: all currents alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import check_int, require
from ..nets.direct import over_time
from ..neurons import unfold_time
from .predict import training_target
from .vp import VP


@dataclass(frozen=True)
class SynapticLoss:
    """Weights of the loss's terms, see `synaptic_terms`; a term of weight 0 is not computed. Raises UserError."""

    spike_steps: int
    image: float = 1.0
    spike: float = 0.0
    reconstruction: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spike_steps", check_int(self.spike_steps, "--timestep"))
        require(self.spike_steps >= 1, f"--timestep={self.spike_steps}: use at least 1")
        for name, value in self.weights().items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            require(number and value >= 0, f"weight {value} of the {name} loss: use a number of 0 or more")
        require(any(self.weights().values()), "image, spike and reconstruction loss have weight 0: nothing to learn")

    def weights(self) -> dict[str, float]:
        """Of each term, by its name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "spike_steps"}


def synaptic_loss(
    net: Callable[[Tensor, Tensor], Tensor],
    process: VP,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    weights: SynapticLoss,
) -> Tensor:
    """Weighted sum of the terms for each image [N]. Arguments as in `synaptic_terms`."""
    terms = synaptic_terms(net, process, x_0, t, noise, weights)
    return torch.stack([weights.weights()[name] * term for name, term in terms.items()]).sum(dim=0)


def synaptic_terms(
    net: Callable[[Tensor, Tensor], Tensor],
    process: VP,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    weights: SynapticLoss,
) -> dict[str, Tensor]:
    """The terms with a weight, each [N] and without that weight. One network call, on the currents of x_t.

    image: squared error of the decoded prediction; spike: of each current; both times `target_weights`.
    reconstruction: variance of the currents over the time steps times `reconstruction_weights`.

    net: currents [L·N, C, H, W], t [N] → currents. x_0 [N, C, H, W] in [−1, 1]; integer t [N]; noise ~ N(0, I).
    """
    x_t = process.diffuse(x_0, t, noise)
    target = training_target(process, x_0, x_t, t, noise)
    currents = unfold_time(net(over_time(x_t, weights.spike_steps), t), weights.spike_steps).to(x_t)
    decoded = currents.mean(dim=0)
    terms: dict[str, Tensor] = {}
    if weights.image:
        terms["image"] = _of_image(decoded - target) * _at(target_weights(process), t, x_t)
    if weights.spike:
        terms["spike"] = _of_image(currents - target) * _at(target_weights(process), t, x_t)
    if weights.reconstruction:
        terms["reconstruction"] = _of_image(currents - decoded) * _at(reconstruction_weights(process), t, x_t)
    return terms


def target_weights(process: VP) -> Tensor:
    """Weight of the target's squared error at each time, float64 [diffusion_steps]; ε counts 1 everywhere.

    v: SNR/(SNR + 1) = ᾱ_t. x_0: SNR = ᾱ_t/(1−ᾱ_t). x_{t−1}: 1/(2·posterior variance), which is infinite at t = 0 and
    there takes the variance of t = 1, as everywhere in `VP`.
    """
    mean_type, alpha_bar = process.config.mean_type, process.alphas_bar
    if mean_type == "v":
        return alpha_bar
    if mean_type == "xstart":
        return alpha_bar / (1 - alpha_bar)
    return torch.ones_like(alpha_bar) if mean_type == "epsilon" else 0.5 * torch.exp(-process.posterior_log_var)


def reconstruction_weights(process: VP) -> Tensor:
    """How far the network's output moves x_{t−1} in a DDIM step, by its largest value; float64 [diffusion_steps].

    |c_1·∂x_0/∂output|, c_1 the first of `ddim_coefficients`.
    """
    mean_type, alpha_bar = process.config.mean_type, process.alphas_bar
    if mean_type == "v":
        slope = torch.sqrt(1 - alpha_bar)
    elif mean_type == "epsilon":
        slope = torch.sqrt(1 / alpha_bar - 1)
    else:
        slope = torch.ones_like(alpha_bar) if mean_type == "xstart" else 1 / process.posterior_mean_coef1
    moved = (ddim_coefficients(alpha_bar, process.alphas_bar_prev)[0] * slope).abs()
    return moved / moved.max()


def ddim_coefficients(now: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(c_1, c_2) of DDIM's step c_1·x_0 + c_2·x_t from ᾱ = `now` to `target`, σ = 0 (Song et al., 2021, eq. 12)."""
    of_x_t = torch.sqrt((1 - target) / (1 - now))
    return torch.sqrt(target) - torch.sqrt(now) * of_x_t, of_x_t


def _of_image(error: Tensor) -> Tensor:
    """Mean square of each image [N], from [N, C, H, W] or [L, N, C, H, W]."""
    square = error.square().flatten(-3).mean(dim=-1)
    return square.mean(dim=0) if square.dim() == 2 else square


def _at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    return values.to(t.device)[t].to(like)
