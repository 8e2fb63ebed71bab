"""--autoencoder: the space that a network is trained in, and what the flags cannot ask for there."""

from __future__ import annotations

import functools

import torch

from ..config import DiffusionConfig, require
from ..data import ImageDataset
from ..distributed.world import current
from ..latent import Autoencoder, load_autoencoder
from . import flags
from .flags import FLAGS


def given_autoencoder() -> Autoencoder | None:
    """The one that the flag names, read once; None without it. Raises UserError."""
    return None if FLAGS.autoencoder is None else _loaded(FLAGS.autoencoder)


_loaded = functools.cache(load_autoencoder)


def check_unclipped(diffusion: DiffusionConfig) -> None:
    """Raise UserError where predicted latents are to be clipped, which have no range; by default they are not."""
    clipped = bool(diffusion.autoencoder) and flags.given("clip_x0") and FLAGS.clip_x0
    require(not clipped, "--clip_x0: latents have no range to be clipped to; drop it")


def check_training(diffusion: DiffusionConfig) -> None:
    """Raise UserError for what only trainings on images can do."""
    if not diffusion.autoencoder:
        return
    check_unclipped(diffusion)
    require(
        not FLAGS.flip,
        "--flip: a mirrored latent is not the latent of the mirrored image; use --noflip with --autoencoder",
    )
    require(
        FLAGS.loss_type == "mse", f"--loss_type={FLAGS.loss_type}: only for 8-bit images; use mse with --autoencoder"
    )


def encoded(images: ImageDataset, autoencoder: Autoencoder | None, device: torch.device) -> ImageDataset:
    """The data set's latents, all computed now and kept in memory; the images themselves without an autoencoder.

    Raises UserError for images that are not the autoencoder's.
    """
    if autoencoder is None:
        return images
    message = f"--autoencoder: takes images of {autoencoder.channels} channels, {images.name} has {images.channels}"
    require(images.channels == autoencoder.channels, message)
    made = images.as_latents(autoencoder.to(device).encode_all(images))
    if current().main:
        shape = "x".join(map(str, made[0].shape))
        print(f"latents: {shape} an image, of the autoencoder {autoencoder.identity}")
    return made
