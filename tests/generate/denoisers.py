"""Networks without weights that the tests of sampling use: what they predict is known exactly."""

import torch
from torch import nn

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP
from tests.diffusion.vp_exact import gaussian_denoiser


class Exact(nn.Module):
    """`predict(x, t)` as a network on square images of `side` pixels, in float64."""

    def __init__(self, predict, diffusion: DiffusionConfig, side: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.dtype_holder = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)
        self.predict, self.diffusion, self.image_size, self.in_channels = predict, diffusion, side, channels

    def forward(self, x, t):
        return self.predict(x, t)


def gaussian(std: float = 0.5, steps: int = 100, **options) -> Exact:
    """The exact noise prediction for pixels that are N(0, std²)."""
    config = DiffusionConfig(diffusion_steps=steps, **options)
    return Exact(gaussian_denoiser(VP(config), std), config)
