"""Pictures of what a network makes of given noise or images: each one file in `images/` of the run's folder."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from ..checkpoints import checkpoint
from ..config import SampleConfig, require
from ..data.decode import decode_image
from ..diffusion.process import decoded_size, image_channels
from ..distributed.runtime import place
from ..distributed.world import World
from ..files.atomic import file_hash
from ..generate.editing import edit
from ..generate.images import save_grid
from ..generate.inpainting import inpaint
from ..generate.interpolation import interpolate
from ..generate.inversion import PixelError, round_trip
from ..generate.subject import OF_CALLS
from ..run.folder import PICTURES, RunFolder
from ..run.tables import counted
from .evaluate import picture_name, settings

GREY = 128
LONGEST_STEM = 240  # bytes of a picture's name without its ending: file systems take 255


@dataclass(frozen=True)
class Canvas:
    """What is drawn with, and where to: the run begins when the first picture has been computed."""

    folder: RunFolder
    source: checkpoint.Loaded
    sample: SampleConfig
    world: World

    @property
    def net(self) -> nn.Module:
        return place(self.source.net, self.world.device)

    def write(self, name: str, rows: list[Tensor]) -> Path:
        """`images/{name}_{settings}.png`: rows of pictures, each uint8 [N, C, H, W]."""
        self.folder.begin(self.world)
        stem = f"{name}_{picture_name(settings(self.source, self.sample))}"
        path = self.folder.path / PICTURES / f"{within(stem, LONGEST_STEM)}.png"
        save_grid(torch.cat(rows), path, nrow=len(rows[0]))
        return path


@dataclass(frozen=True)
class Subject:
    """Given images, uint8 [N, C, H, W], and what their pictures are named after."""

    images: Tensor
    name: str


def within(name: str, longest: int) -> str:
    """`name`, or if that has more than `longest` bytes its beginning and a hash of it."""
    encoded = os.fsencode(name)
    if len(encoded) <= longest:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: longest - len(digest) - 1].decode(errors='ignore')}_{digest}"


def read_subject(path: Path, net: nn.Module, copies: int) -> Subject:
    """The image at `path`, `copies` times, grey or colour as the network has it. Raises UserError for another size."""
    image = fitting(decode_image(path, image_channels(net)), path, net)
    return Subject(image[None].repeat(copies, 1, 1, 1), f"{path.stem[:40]}_{file_hash(path)[:8]}")


def read_mask(path: Path, net: nn.Module) -> Tensor:
    """Bool [H, W]: where the picture at `path` is brighter than mid-grey. Raises UserError, also where that is none."""
    mask = fitting(decode_image(path, 1), path, net)[0] >= GREY
    require(bool(mask.any()), f"--inpaint={path}: is dark everywhere; white marks what is to be made anew")
    return mask


def fitting(picture: Image.Image, path: Path, net: nn.Module) -> Tensor:
    """uint8 [C, H, W] of the size of the network's images. Raises UserError."""
    pixels, size = pil_to_tensor(picture), decoded_size(net)
    height, width = pixels.shape[1:]
    expected = f"{size.width}x{size.height}"
    require((height, width) == size, f"{path} is {width}x{height} pixels, the network's images {expected}")
    return pixels


def draw_interpolation(canvas: Canvas, seeds: tuple[int, int], count: int) -> int:
    """A strip of `count` images from one seed's to the other's."""
    settings = {name: value for name, value in canvas.sample.taken().items() if name != "seed"}
    strip = interpolate(canvas.net, *seeds, count, **settings)
    path = canvas.write(f"interpolate_{seeds[0]}_{seeds[1]}_{count}", [strip])
    print(f"{path}: from seed {seeds[0]} to seed {seeds[1]} in {counted(count, 'image')}")
    return 0


def draw_edit(canvas: Canvas, subject: Subject, strength: float) -> int:
    """The images, and below them their variations."""
    made = edit(canvas.net, subject.images, strength, **canvas.sample.taken())
    path = canvas.write(f"start_{subject.name}_{strength:g}_{len(made)}", [subject.images, made])
    print(f"{path}: {counted(len(made), 'image')} from {subject.name}, strength {strength:g}")
    return 0


def draw_inpainting(canvas: Canvas, subject: Subject, mask: Tensor, resamples: int, name: str) -> int:
    """The images, what was kept of them, and what was made. name: the mask's."""
    sample = canvas.sample
    settings = {key: getattr(sample, key) for key in ("seed", "clip", "skip", *OF_CALLS)}
    made = inpaint(canvas.net, subject.images, mask, sample.steps, resamples=resamples, **settings)
    kept = torch.where(mask, torch.full_like(made, GREY), subject.images)
    path = canvas.write(f"inpaint_{subject.name}_{name}_{resamples}_{len(made)}", [subject.images, kept, made])
    print(f"{path}: {counted(len(made), 'image')}, {float(mask.double().mean()):.0%} of their pixels made anew")
    return 0


def draw_inversion(canvas: Canvas, subject: Subject, iterations: int) -> int:
    """The images, and below them what comes back from their noise; prints how far it is from them.

    Between them, of a network on latents, what comes back from the autoencoder alone.
    """
    sample = canvas.sample
    settings = {key: getattr(sample, key) for key in ("skip", *OF_CALLS)}
    trip = round_trip(canvas.net, subject.images, sample.steps, iterations=iterations, **settings)
    rows = [subject.images, trip.images]
    if trip.latent:
        rows.insert(1, trip.latent.decoded)
    path = canvas.write(f"invert_{subject.name}_{iterations}_{len(trip.images)}", rows)
    images, steps = counted(len(trip.images), "image"), counted(sample.steps, "step")
    print(f"{path}: {images} to noise and back, {steps} each way")
    print(f"round trip: {written(PixelError(trip.rmse, trip.psnr))}")
    if trip.latent:
        print(f"autoencoder alone: {written(trip.latent.autoencoder)}")
        print(f"diffusion alone: {written(trip.latent.diffusion)}; of latents, RMSE {trip.latent.rmse:.4f}")
    print(
        f"noise: mean {float(trip.noise.mean()):.4f}, standard deviation {float(trip.noise.std()):.4f} (0 and 1 drawn)"
    )
    return 0


def written(error: PixelError) -> str:
    """As the command prints it."""
    psnr = "nothing differs" if math.isinf(error.psnr) else f"PSNR {error.psnr:.2f} dB"
    return f"RMSE {error.rmse:.3f} of 255, {psnr}"
