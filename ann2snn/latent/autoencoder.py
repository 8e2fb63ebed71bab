"""An autoencoder in front of a denoiser: images to latents, latents to images, and which network it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import seal
from ..config import require
from ..data import ImageDataset, to_model_range, to_uint8
from ..distributed.runtime import steady_convolutions

PIXELS = 1 << 18  # of the images that are encoded or decoded at once
MOST_ROWS = 32


class Encoder(nn.Module):
    """Images → latents. net: images → an answer that `last` makes mean and log variance of z of, channel by channel."""

    def __init__(self, net: nn.Module, last: nn.Module, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.net, self.last = net, last
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        mean, _ = self.last(self.net(x)).chunk(2, dim=1)
        return (mean - self.shift) * self.scale


class Decoder(nn.Module):
    """Latents → images, by `first` and then `net`."""

    def __init__(self, first: nn.Module, net: nn.Module, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.first, self.net = first, net
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, latents: Tensor) -> Tensor:
        return self.net(self.first(latents / self.scale + self.shift))


class Autoencoder:
    """encoder: images float [N, C, H, W] in [-1, 1] → latents [N, c, H/f, W/f]. decoder: the way back.

    Attributes:
        channels: C, 1 or 3. latent_channels: c. downscale: f.
        identity: 16 hexadecimal digits that tell one trained autoencoder from another, its scaling of latents included.

    It is not changed by use, so copies of a network share it.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, shape: tuple[int, int, int], settings: object) -> None:
        """shape: C, c and f. settings: the plain ones that make the autoencoder, with its weights, what it is."""
        self.encoder, self.decoder = encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)
        self.channels, self.latent_channels, self.downscale = shape
        weights = {"encoder": dict(encoder.state_dict()), "decoder": dict(decoder.state_dict())}
        self.identity = seal.content_hash({"settings": settings, "weights": weights}).removeprefix("sha256:")[:16]

    def __deepcopy__(self, memo: dict) -> Autoencoder:
        return self

    @property
    def space(self) -> dict[str, Any]:
        """The fields of a `DiffusionConfig` that say in whose latent space a process runs."""
        return {"autoencoder": self.identity, "downscale": self.downscale, "decoded_channels": self.channels}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images [N, C, H, W] → latents float32 [N, c, H/f, W/f] on the CPU: the posterior's mean, no draw.

        Raises UserError for images that it has no latents for.
        """
        tensor = isinstance(images, Tensor) and images.dim() == 4 and images.dtype == torch.uint8 and len(images) > 0
        fits = tensor and images.shape[1] == self.channels and not any(n % self.downscale for n in images.shape[2:])
        kind = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        expected = f"uint8 [N, {self.channels}, H, W] with multiples of {self.downscale} for H and W"
        require(fits, f"images: {kind}, the autoencoder takes {expected}")
        return self._by_parts(self.encoder, images, rows(images.shape[-2] * images.shape[-1]), to_model_range).cpu()

    def encode_all(self, dataset: ImageDataset) -> Tensor:
        """The latents of a data set, in its order. Raises UserError."""
        size = rows(dataset.img_size.pixels)
        starts = tqdm(range(0, len(dataset), size), desc="encoding", leave=False, disable=None)
        few = ([dataset[i] for i in range(start, min(start + size, len(dataset)))] for start in starts)
        return torch.cat([self.encode(torch.stack(images)) for images in few])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, c, h, w] → images [N, C, h·f, w·f] about [-1, 1], as float32 on their device."""
        pixels = latents.shape[-2] * latents.shape[-1] * self.downscale**2
        return self._by_parts(self.decoder, latents, rows(pixels), Tensor.float)

    def _by_parts(self, part: nn.Module, values: Tensor, size: int, prepared: Callable[[Tensor], Tensor]) -> Tensor:
        device = next(part.parameters()).device if values.device.type == "cpu" else values.device
        part.to(device)
        made = []
        with steady_convolutions(part), torch.autocast(device.type, enabled=False):
            for few in values.split(size):  # always as many: what stands beside an image must not change how it rounds
                full = torch.cat([few, few[-1:].expand(size - len(few), *few.shape[1:])])
                made.append(part(prepared(full.to(device)))[: len(few)])
        return torch.cat(made)

    def to(self, device: torch.device | str) -> Autoencoder:
        """Itself, to encode there from now on; it decodes where the latents are."""
        self.encoder.to(device)
        return self


def rows(pixels: int) -> int:
    """Images of so many pixels that are encoded or decoded at once."""
    return max(1, min(MOST_ROWS, PIXELS // pixels))


def check_attached(net: Any, autoencoder: Autoencoder | None, where: object = "the network") -> None:
    """Raise UserError unless the autoencoder is that of the denoiser's latents; None for one on images."""
    expected = net.diffusion.autoencoder
    identity = "" if autoencoder is None else autoencoder.identity
    if identity == expected:
        return
    require(bool(identity), f"{where} makes latents of the autoencoder {expected}: give it with --autoencoder")
    require(bool(expected), f"--autoencoder: {where} was trained on images, not on latents; drop it")
    require(False, f"--autoencoder is {identity}, {where} was trained on latents of {expected}: give that one")


def attach(net: Any, autoencoder: Autoencoder | None, where: object = "the network") -> None:
    """Give a denoiser, as `net.autoencoder`, what decodes its latents. Raises UserError as `check_attached`."""
    check_attached(net, autoencoder, where)
    net.autoencoder = autoencoder


def autoencoder_for(net: Any, given: Autoencoder | None = None) -> Autoencoder | None:
    """That of a denoiser's latents: the given one, else the network's own; None for a denoiser of images.

    Raises UserError for anything else, and as `check_attached`.
    """
    require(isinstance(given, Autoencoder | None), f"autoencoder={type(given).__name__}: use ann2snn.load_autoencoder")
    autoencoder = getattr(net, "autoencoder", None) if given is None else given
    check_attached(net, autoencoder)
    return autoencoder


def as_images(net: Any, given: Autoencoder | None = None) -> Callable[[Tensor], Tensor]:
    """From what a sampler makes with a denoiser, [N, c, h, w], to images, uint8 [N, C, H, W].

    given: the autoencoder. Its default, and errors: as of `autoencoder_for`.
    """
    autoencoder = autoencoder_for(net, given)
    return to_uint8 if autoencoder is None else lambda latents: to_uint8(autoencoder.decode(latents))
