"""A process in continuous time as something to train and to sample: what CLD and blur diffusion share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import DiffusionConfig, ImageSize, SampleConfig, require
from .continuous_loss import noise_error, training_times
from .gddim import with_label_scale
from .linear_process import LinearProcess
from .precondition import LinearFirst, noise_weights

Denoiser = Callable[[Tensor, Tensor], Tensor]


class ContinuousTime(LinearProcess):
    """A `Process` whose times run from 0 to 1 and whose network predicts noise; see there.

    A new one defines the closed forms of `LinearProcess`, which are enough where the network sees the state itself.
    """

    state_channels = 1
    default_sampler = "gddim"

    @classmethod
    def of(cls, config: DiffusionConfig, image_size: ImageSize) -> ContinuousTime:
        return cls()

    def draw_times(
        self, count: int, device: Any = None, generator: torch.Generator | None = None, power: float = 1.0
    ) -> Tensor:
        return training_times(self, torch.rand(count, dtype=torch.float64, generator=generator) ** power)

    def share(self, t: Tensor) -> Tensor:
        return t.double()

    def pair(self, config: DiffusionConfig, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.diffuse(x_0, t, noise, config.factor), label_scale(config) * t.to(x_0)

    def loss(
        self,
        net: Denoiser,
        config: DiffusionConfig,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        loss_type: str,
        synaptic: object = None,
    ) -> Tensor:
        if loss_type == "scl":
            raise ValueError('loss_type="scl" is for VP alone, and needs `synaptic`')
        predict = self.denoiser(net, config)
        loss = noise_error(predict, self, x_0, t, noise, factor=config.factor).flatten(1).mean(dim=1)
        # Not of the linear prediction above, which is made at the float32 times that the network is told: blur
        # diffusion's weights would be off by 1e-5.
        return loss * noise_weights(self, t).to(loss) if config.linear_first else loss

    def loss_weights(self, t: Tensor, name: str, gamma: float) -> Tensor:
        require(name == "none", f"--loss_weight={name}: not for {type(self).__name__}")
        return torch.ones_like(t)

    def linear(self) -> LinearProcess:
        return self

    def denoiser(self, net: Denoiser, config: DiffusionConfig) -> Denoiser:
        denoiser = LinearFirst(net, self, label_scale(config)) if config.linear_first else net
        return with_label_scale(denoiser, label_scale(config))

    @classmethod
    def states(cls, steps: int, seed: int) -> SampleConfig:
        return SampleConfig("gddim", steps=steps, seed=seed, order=min(2, steps - 2), denoise=False)


def label_scale(config: DiffusionConfig) -> float:
    """What times in [0, 1] are multiplied with for the network, which was built for steps 0 to T − 1."""
    return config.diffusion_steps - 1.0
