"""The β schedules of discrete variance-preserving processes, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import DiffusionConfig

MAX_BETA = 0.999  # of the schedules that are defined by their ᾱ, which would end at 0


def betas_of(config: DiffusionConfig) -> Tensor:
    """β_t, float64 [diffusion_steps], each in (0, 1]; only jsd and what `zero_terminal_snr` rescales reach 1."""
    betas = SCHEDULES[config.schedule](config)
    return zero_terminal(betas) if config.zero_terminal_snr else betas


def zero_terminal(betas: Tensor) -> Tensor:
    """The betas [K ≥ 2] whose √ᾱ is that of `betas`, moved down to 0 at the end and stretched to keep its first value.

    Lin et al., arXiv 2305.08891, algorithm 1. A process that ends in pure noise stays what it is.
    """
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    if roots[-1] == 0:
        return betas
    first, last = roots[0], roots[-1]
    alphas_bar = ((roots - last) * first / (first - last)) ** 2
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])


def _line(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _linear(config: DiffusionConfig) -> Tensor:
    """Ho et al., 2020."""
    return _line(config.beta_1, config.beta_T, config.diffusion_steps)


def _quad(config: DiffusionConfig) -> Tensor:
    """√β is linear."""
    return _line(config.beta_1**0.5, config.beta_T**0.5, config.diffusion_steps) ** 2


def _const(config: DiffusionConfig) -> Tensor:
    return torch.full((config.diffusion_steps,), config.beta_T, dtype=torch.float64)


def _warm_up(fraction: float) -> Callable[[DiffusionConfig], Tensor]:
    """Linear over the first `fraction` of the steps, constant from there on."""

    def schedule(config: DiffusionConfig) -> Tensor:
        betas = _const(config)
        rising = int(config.diffusion_steps * fraction)
        betas[:rising] = _line(config.beta_1, config.beta_T, rising)
        return betas

    return schedule


def _jsd(config: DiffusionConfig) -> Tensor:
    """1/K, 1/(K−1), …, 1 for K steps (Sohl-Dickstein et al., 2015): ᾱ falls linearly to 0."""
    return 1 / torch.arange(config.diffusion_steps, 0, -1, dtype=torch.float64)


def _from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """β_t = 1 − ᾱ((t+1)/K)/ᾱ(t/K), at most MAX_BETA, for ᾱ of time in [0, 1]."""
    values = alpha_bar(_line(0, 1, steps + 1))
    return (1 - values[1:] / values[:-1]).clamp(max=MAX_BETA)


def _cosine(config: DiffusionConfig) -> Tensor:
    """ᾱ(u) ∝ cos²(π/2·(u + s)/(1 + s)) (Nichol, Dhariwal, 2021, eq. 17); s is `cosine_offset`."""
    offset = config.cosine_offset
    return _from_alpha_bar(lambda u: torch.cos((u + offset) / (1 + offset) * torch.pi / 2) ** 2, config.diffusion_steps)


def _sigmoid(config: DiffusionConfig) -> Tensor:
    """ᾱ(u) ∝ sigmoid(end/τ) − sigmoid((start + u·(end − start))/τ) (Jabri et al., 2023)."""
    start, end, tau = config.sigmoid_start, config.sigmoid_end, config.sigmoid_tau
    last = torch.sigmoid(torch.tensor(end / tau, dtype=torch.float64))
    return _from_alpha_bar(lambda u: last - torch.sigmoid((start + u * (end - start)) / tau), config.diffusion_steps)


SCHEDULES: dict[str, Callable[[DiffusionConfig], Tensor]] = {
    "linear": _linear,
    "quad": _quad,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "const": _const,
    "warmup10": _warm_up(0.1),
    "warmup50": _warm_up(0.5),
    "jsd": _jsd,
}
