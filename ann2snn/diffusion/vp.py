"""The variance-preserving process of DDPM (Ho et al., 2020): x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, t = 0..diffusion_steps−1."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..config import DiffusionConfig
from ..distributed.runtime import sent
from .log_snr import LogSNR
from .schedules import betas_of


class VP:
    """Coefficients in float64; gathered values are cast to the dtype of the images they scale.

    Attributes, each float64 [diffusion_steps]: betas, alphas_bar, alphas_bar_prev (ᾱ_{−1} = 1), and the posterior
    q(x_{t−1} | x_t, x_0) of eq. 7: posterior_mean_coef1 (of x_0), posterior_mean_coef2 (of x_t), posterior_var.
    """

    def __init__(self, config: DiffusionConfig, betas: Tensor | None = None) -> None:
        """betas: float64 [diffusion_steps], instead of those that `config` describes."""
        self.config = config
        steps = config.diffusion_steps
        self.betas = betas_of(config) if betas is None else betas
        alphas = 1 - self.betas
        self.alphas_bar = torch.cumprod(alphas, dim=0)
        self.alphas_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_bar[:-1]])
        self.posterior_var = self.betas * (1 - self.alphas_bar_prev) / (1 - self.alphas_bar)
        self.posterior_mean_coef1 = torch.sqrt(self.alphas_bar_prev) * self.betas / (1 - self.alphas_bar)
        self.posterior_mean_coef2 = torch.sqrt(alphas) * (1 - self.alphas_bar_prev) / (1 - self.alphas_bar)
        # The posterior variance is 0 at t = 0; its logarithm borrows the next value (both variance types).
        self.posterior_log_var = torch.log(torch.cat([self.posterior_var[1:2], self.posterior_var[1:]]))
        if steps == 1:
            self.posterior_log_var = torch.log(self.betas)

    @property
    def diffusion_steps(self) -> int:
        return self.config.diffusion_steps

    def in_range(self, x_0: Tensor) -> Tensor:
        """A finished x_0 limited to [−1, 1], which is the range of images; latents have none."""
        return x_0 if self.config.autoencoder else x_0.clamp(-1, 1)

    def first(self, steps: int) -> VP:
        """The process that ends after the first `steps` of its steps."""
        return VP(replace(self.config, diffusion_steps=steps, zero_terminal_snr=False), self.betas[:steps])

    @cached_property
    def log_snr(self) -> LogSNR:
        """λ(t) at real times. Raises UserError if the process has one step or ends at ᾱ = 0."""
        return LogSNR(self.alphas_bar)

    def alpha_bar_at(self, t: Tensor) -> Tensor:
        """ᾱ, float64 [N] on t's device, at integer times [N] or, interpolated, at real ones (a floating-point t)."""
        if not t.is_floating_point():
            return kept_on(self.alphas_bar, t.device)[t]
        if t.is_cuda:
            return torch.exp(self.log_snr.log_alpha_bar_on_device(t.double()))
        return torch.exp(torch.from_numpy(self.log_snr.log_alpha_bar(t.double().numpy())))

    def model_log_var(self) -> Tensor:
        """log σ²_t of the reverse step [diffusion_steps]: fixedlarge is β_t (posterior at t = 0), fixedsmall β̃_t."""
        if self.config.var_type == "fixedsmall":
            return self.posterior_log_var
        return torch.cat([self.posterior_log_var[:1], torch.log(self.betas[1:])])

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0), eq. 4. x_0, noise [N, C, H, W]; t [N], integer or real."""
        alpha_bar = self.alpha_bar_at(t)
        return per_image(torch.sqrt(alpha_bar), x_0) * x_0 + per_image(torch.sqrt(1 - alpha_bar), x_0) * noise

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t−1} | x_t, x_0), eq. 7."""
        return gather(self.posterior_mean_coef1, t, x_t) * x_0 + gather(self.posterior_mean_coef2, t, x_t) * x_t


def gather(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values [K], integer t [N] → [N, 1, 1, …] in the dtype and on the device of `like` [N, …]."""
    return per_image(kept_on(values, like.device)[t], like)


#: Table → its copies, by device: a network call should not wait for one.
_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def kept_on(table: Tensor, device: torch.device) -> Tensor:
    """`table` on `device`, copied there once. It must not be changed."""
    if table.device == device:
        return table
    copies = _copies.setdefault(table, {})
    if device not in copies:
        copies[device] = sent(table, device)
    return copies[device]


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """values [N] → [N, 1, 1, …] in the dtype and on the device of `like` [N, …]."""
    return values.to(device=like.device, dtype=like.dtype).view(-1, *[1] * (like.dim() - 1))
