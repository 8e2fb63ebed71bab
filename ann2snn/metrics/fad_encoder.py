"""The autoencoder whose latent vectors the Frechet autoencoder distance compares, and its files.

Layout, names of parameters and sizes are those of the published encoders (Kamata, Mukuta, Harada 2022, "Fully spiking
variational autoencoder", 2110.00375), so that their `.pth` files load strictly and ours load elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import require
from ..errors import UserError
from ..files.atomic import replacing
from .weights import check_fit, read_state

WIDTHS = {32: (32, 64, 128, 256), 64: (32, 64, 128, 256, 512)}  # channels of the stages, by image side
MOST_LATENT = 1024
MOST_BYTES = 1 << 27  # the larger published layout has 21 MB
CORNER = 4  # 2 x 2 pixels are left after the last stage


def _stage(conv: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU())


class AutoEncoder(nn.Module):
    """Images [N, channels, side, side] in [-1, 1] → latent vectors [N, latent] → images.

    Args:
        channels: 1 (grey) or 3.
        latent: length of the latent vector; published: 64 for grey, 128 for colour.
        side: 32 (four stages) or 64 (five).

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, channels: int = 1, latent: int = 64, side: int = 32) -> None:
        super().__init__()
        require(side in WIDTHS, f"an autoencoder for {side} pixels is not defined: use {' or '.join(map(str, WIDTHS))}")
        require(channels in (1, 3), f"{channels} image channels: use 1 or 3")
        require(1 <= latent <= MOST_LATENT, f"latent={latent}: use 1 to {MOST_LATENT}")
        self.channels, self.latent, self.side = channels, latent, side
        widths = WIDTHS[side]
        pairs = zip((channels, *widths), widths, strict=False)
        self.encoder = nn.Sequential(*(_stage(nn.Conv2d(a, b, 3, 2, 1), b) for a, b in pairs))
        self.latent_layer = nn.Linear(widths[-1] * CORNER, latent)
        self.decoder_input = nn.Linear(latent, widths[-1] * CORNER)
        back = widths[::-1]
        stages = (_stage(nn.ConvTranspose2d(a, b, 3, 2, 1, 1), b) for a, b in zip(back, back[1:], strict=False))
        self.decoder = nn.Sequential(*stages)
        last = back[-1]
        self.final_layer = nn.Sequential(
            *_stage(nn.ConvTranspose2d(last, last, 3, 2, 1, 1), last),
            nn.ConvTranspose2d(last, channels, 3, 1, 1),
            nn.Tanh(),
        )

    def encode(self, x: Tensor, batch_statistics: bool) -> Tensor:
        """x [N, C, side, side] → latent vectors [N, latent]. Changes nothing in the network.

        batch_statistics: normalize by mean and variance of this very batch (as in training mode) instead of the
        stored running ones: the vector of one image then depends on the others.
        """
        for stage in self.encoder.children():
            conv, norm, activation = stage.children()
            assert isinstance(norm, nn.BatchNorm2d)
            mean, variance = (None, None) if batch_statistics else (norm.running_mean, norm.running_var)
            x = F.batch_norm(conv(x), mean, variance, norm.weight, norm.bias, training=batch_statistics, eps=norm.eps)
            x = activation(x)
        return self.latent_layer(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """x → its reconstruction, both [N, C, side, side]."""
        z = self.latent_layer(self.encoder(x).flatten(1))
        return self.final_layer(self.decoder(self.decoder_input(z).view(len(z), -1, 2, 2)))


def save_autoencoder(path: str | os.PathLike, net: AutoEncoder) -> None:
    """Write the state dict, as the published files are, in one step. Raises UserError if the disk refuses."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(net.state_dict(), file)


def load_autoencoder(path: str | os.PathLike) -> AutoEncoder:
    """Read a state dict, published or our own; sizes are read off the shapes. The network comes in eval mode.

    Raises UserError for a file that is missing, damaged, no state dict of this layout, or not finite.
    """
    path = Path(path)
    state = read_state(path, "--fad_encoder", MOST_BYTES)
    first, latent = state.get("encoder.0.0.weight"), state.get("latent_layer.weight")
    stages = sum(f"encoder.{i}.0.weight" in state for i in range(8))
    sides = [side for side, widths in WIDTHS.items() if len(widths) == stages]
    if first is None or latent is None or first.dim() != 4 or latent.dim() != 2 or not sides:
        raise UserError(f"refusing {path}: it is not an autoencoder of the published layout: check --fad_encoder")
    try:
        net = AutoEncoder(first.shape[1], latent.shape[0], sides[0])
    except UserError as error:
        raise UserError(f"refusing {path}: {error}") from None
    check_fit(net.state_dict(), state, path)
    net.load_state_dict(state, strict=True)
    return net.eval().requires_grad_(False)
