"""The process "vp": DDPM's (Ho et al., 2020), as it is trained and sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import DiffusionConfig, ImageSize, SampleConfig
from .continuous_vp import ContinuousVP
from .learned_range import prediction
from .linear_process import LinearProcess
from .loss import training_loss
from .loss_weights import loss_weights
from .synaptic import SynapticLoss, synaptic_loss
from .vp import VP

Denoiser = Callable[[Tensor, Tensor], Tensor]


class DDPM(VP):
    """A `Process` of whole diffusion steps; see there."""

    state_channels = 1
    default_sampler = "ddim"

    @classmethod
    def of(cls, config: DiffusionConfig, image_size: ImageSize) -> DDPM:
        return cls(config)

    def draw_times(
        self, count: int, device: Any = None, generator: torch.Generator | None = None, power: float = 1.0
    ) -> Tensor:
        return torch.randint(self.diffusion_steps, (count,), device=device, generator=generator)

    def share(self, t: Tensor) -> Tensor:
        return t.double() / self.diffusion_steps

    def pair(self, config: DiffusionConfig, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.diffuse(x_0, t, noise), t

    def loss(
        self,
        net: Denoiser,
        config: DiffusionConfig,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        loss_type: str,
        synaptic: SynapticLoss | None = None,
    ) -> Tensor:
        if loss_type != "scl":
            return training_loss(net, self, x_0, t, noise, loss_type)
        if synaptic is None:
            raise ValueError('loss_type="scl" is for VP alone, and needs `synaptic`')
        return synaptic_loss(net, self, x_0, t, noise, synaptic)

    def loss_weights(self, t: Tensor, name: str, gamma: float) -> Tensor:
        return loss_weights(self, t, name, gamma)

    def data(self, state: Tensor) -> Tensor:
        return state

    def linear(self) -> LinearProcess:
        return ContinuousVP(self.config)

    def denoiser(self, net: Denoiser, config: DiffusionConfig) -> Denoiser:
        return lambda x, t: prediction(net(x, t), x)

    @classmethod
    def states(cls, steps: int, seed: int) -> SampleConfig:
        return SampleConfig("ddim", steps=steps, seed=seed)
