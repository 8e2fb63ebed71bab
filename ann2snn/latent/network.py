"""A small convolutional autoencoder of our own: a variational one (Kingma and Welling, arXiv 1312.6114), as latent
diffusion's (Rombach et al., arXiv 2112.10752) without its adversarial and perceptual terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MAX_IMAGE_SIZE, SQUARE_32, ImageSize, check_int, check_size, require

GROUPS = 8  # of every norm
LEAST_LOG_VAR, MOST_LOG_VAR = -30.0, 20.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """channels: of the images, 1 or 3. image_size: of those it is trained on, one number or height and width; others of
    whole latents fit, too.

    latent_channels: of a latent, whose sides are those of the image halved `halvings` times. width: channels at
    full size, a multiple of 8; each halving has twice as many, four times at most.

    Raises UserError for values out of range.
    """

    channels: int = 1
    image_size: ImageSize = SQUARE_32
    latent_channels: int = 4
    width: int = 32
    halvings: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", check_size(self.image_size))
        for name in set(self.__dataclass_fields__) - {"image_size"}:
            object.__setattr__(self, name, check_int(getattr(self, name), f"--{name}"))
        require(self.channels in (1, 3), f"{self.channels} image channels: images have 1 (grey) or 3 (colour)")
        require(1 <= self.latent_channels <= 64, f"--latent_channels={self.latent_channels}: use 1 to 64")
        require(1 <= self.halvings <= 6, f"--halvings={self.halvings}: use 1 to 6")
        right = GROUPS <= self.width <= 1024 and self.width % GROUPS == 0
        require(right, f"--width={self.width}: use a multiple of {GROUPS} up to 1024")
        size = self.image_size
        require(1 <= min(size) and max(size) <= MAX_IMAGE_SIZE, f"--img_size={size}: use 1 to {MAX_IMAGE_SIZE}")
        require(
            not any(side % self.downscale for side in size),
            f"--img_size={size}: must be a multiple of {self.downscale}, to be halved",
        )

    @property
    def downscale(self) -> int:
        """Pixels of an image's side to one of its latent's."""
        return 2**self.halvings

    @property
    def widths(self) -> list[int]:
        """Channels from full size to that of the latents."""
        return [self.width * min(4, 2**level) for level in range(self.halvings + 1)]

    def to_dict(self) -> dict:
        return dataclasses.asdict(self) | {"image_size": self.image_size.stored}


class Residual(nn.Module):
    """x + f(x), both [N, width, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = (nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvAutoencoder(nn.Module):
    """encoder: images [N, C, H, W] in [-1, 1] → mean and log variance of z, [N, 2·c, H/f, W/f]. decoder: z → images.

    shift, scale: buffers [1, c, 1, 1]; latents are (mean - shift)·scale, of unit variance once they are measured.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths, latent = config.widths, config.latent_channels
        down: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1), Residual(widths[-1])]
        for fine, coarse in zip(widths, widths[1:], strict=False):
            down += [Residual(fine), nn.Conv2d(fine, coarse, 3, stride=2, padding=1)]
        for fine, coarse in list(zip(widths, widths[1:], strict=False))[::-1]:
            up += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(coarse, fine, 3, padding=1), Residual(fine)]
        down += [Residual(widths[-1]), *_end(widths[-1], 2 * latent)]
        up += _end(widths[0], config.channels)
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(1, latent, 1, 1))
        self.register_buffer("scale", torch.ones(1, latent, 1, 1))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] → mean and log variance of z."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var.clamp(LEAST_LOG_VAR, MOST_LOG_VAR)

    def loss(self, x: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """(mean squared error per pixel, that plus kl_weight·KL(q(z|x) ‖ N(0, I)) per value of z); noise is like z."""
        mean, log_var = self.moments(x)
        error = F.mse_loss(self.decoder(mean + (0.5 * log_var).exp() * noise), x)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        return error, error + kl_weight * divergence


def _end(width: int, channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]
