"""Train an autoencoder, whose latents can then be diffused."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ..config import check_seed, require
from ..data import ImageDataset, load_dataset
from ..data.loader import batches, to_model_range, to_uint8
from ..distributed.runtime import choose_device, seed_from
from ..generate.images import save_grid
from ..latent import Autoencoder, AutoencoderConfig, ConvAutoencoder, load_autoencoder, save_autoencoder
from ..latent.autoencoder import rows
from ..latent.files import autoencoder_of
from ..run.tables import counted, parameters_of
from .course import Course, Unfinished, owning, unfinished_path
from .fad_train import prepare

MOST_STEPS, MOST_LR = 10**7, 100
MEASURED, JUDGED, SHOWN = 1024, 256, 16  # images that latents are scaled by, held out, and shown


def train(
    dataset: ImageDataset,
    config: AutoencoderConfig,
    given: argparse.Namespace,
    device: torch.device,
    kept: Unfinished | None = None,
) -> tuple[ConvAutoencoder, Course]:
    """The trained network in eval mode, its latents scaled to zero mean and unit variance by channel; its training.

    Adam on `ConvAutoencoder.loss`, at half a cosine of rates. given: steps, batch_size, lr, kl_weight and seed. kept:
    where the state is, if anywhere. The global random state is neither read nor changed. Raises UserError where the
    training diverges.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(given.seed))
        net = ConvAutoencoder(config)
    net = net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=given.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
    course = Course(net, optimizer, schedule, kept)
    shape = config.latent_channels, *(side // config.downscale for side in config.image_size)

    def forward(step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        x = to_model_range(images).to(device)
        generator = torch.Generator().manual_seed(seed_from(given.seed, step))
        noise = torch.randn(len(x), *shape, generator=generator).to(device)
        return net.loss(x, noise, given.kl_weight)

    course.run(batches(dataset, given.batch_size, seed=given.seed, start_step=course.step), given.steps, forward)
    net = net.eval().requires_grad_(False)
    _scale_latents(net, dataset, device)
    finite = all(bool(torch.isfinite(entry).all()) for entry in net.state_dict().values())
    require(finite, "the autoencoder's weights are not finite: lower --lr")
    return net, course


def _scale_latents(net: ConvAutoencoder, dataset: ImageDataset, device: torch.device) -> None:
    size, count = rows(dataset.img_size.pixels), min(MEASURED, len(dataset))
    parts = [torch.stack([dataset[i] for i in range(s, min(s + size, count))]) for s in range(0, count, size)]
    means = torch.cat([net.moments(to_model_range(part).to(device))[0] for part in parts]).transpose(0, 1).flatten(1)
    net.shift.copy_(means.mean(1)[None, :, None, None])
    spread = means.std(1)
    require(bool((spread > 0).all()), "a channel of the latents is constant: train longer, or lower --kl_weight")
    net.scale.copy_(1 / spread[None, :, None, None])


def run(given: argparse.Namespace) -> None:
    """Train, write OUT and a picture OUT.png of held-out images and what is left of them. Raises UserError."""
    out: Path = given.out
    picture = out.with_suffix(".png")
    require(out.suffix == ".pt", f"--out={out}: must end in .pt")
    begun = unfinished_path(out).exists()  # then what there is may be its own
    for path in (out, picture):
        require(begun or not path.exists(), f"{path} exists: choose another --out, or remove it")
    require(1 <= given.steps <= MOST_STEPS, f"--steps={given.steps}: use 1 to {MOST_STEPS}")
    require(1 <= given.batch_size <= 65536, f"--batch_size={given.batch_size}: use 1 to 65536")
    require(0 < given.lr <= MOST_LR, f"--lr={given.lr}: use more than 0, {MOST_LR} at most")
    require(0 <= given.kl_weight <= 1000, f"--kl_weight={given.kl_weight}: use 0 to 1000")
    require(0 <= given.num_threads <= 1024, f"--num_threads={given.num_threads}: use 0 to 1024")
    check_seed(given.seed)
    shape = {"image_size": given.img_size, "latent_channels": given.latent_channels}
    config = AutoencoderConfig(given.channels or 1, **shape, width=given.width, halvings=given.halvings)
    if given.num_threads:
        torch.set_num_threads(given.num_threads)
    device = choose_device(given.device)
    place = given.dataset_type, given.data_dir, given.img_size
    training, held_out = (load_dataset(*place, train=part, channels=given.channels) for part in (True, False))
    config = AutoencoderConfig(training.channels, **shape, width=config.width, halvings=config.halvings)
    settings = {name: getattr(given, name) for name in ("steps", "batch_size", "lr", "kl_weight", "seed")}
    settings |= config.to_dict() | {"dataset_type": training.name, "data_dir": training.fingerprint()}
    prepare(out.parent)
    with owning(out):
        net, course = train(training, config, given, device, Unfinished.of(out, settings))
        write_trained(out, net.cpu(), dataset_type=training.name, steps=given.steps)
        work = f"{counted(given.steps, 'step')} on {counted(len(training), 'image')} of {training.name}"
        print(f"{out}: {parameters_of(net)}, {work}")
        judge(load_autoencoder(out), held_out, picture)
        course.finish()


def write_trained(out: Path, net: ConvAutoencoder, **about: object) -> None:
    """Write the autoencoder, unless an earlier run has just done that. Raises UserError for any other file there."""
    if os.path.lexists(out):
        same = load_autoencoder(out).identity == autoencoder_of(net).identity
        require(same, f"{out} exists, and is another autoencoder: choose another --out, or remove it")
        return
    save_autoencoder(out, net, **about)


def judge(autoencoder: Autoencoder, held_out: ImageDataset, picture: Path) -> None:
    """Draw held-out images above what is left of them, and print how close that is, and how latents are distributed."""
    images = torch.stack([held_out[i] for i in range(min(JUDGED, len(held_out)))])
    latents = autoencoder.encode(images)
    decoded = to_uint8(autoencoder.decode(latents))
    save_grid(torch.cat([images[:SHOWN], decoded[:SHOWN]]), picture, nrow=min(SHOWN, len(images)))
    print(
        f"latents {'x'.join(map(str, latents.shape[1:]))} of images {'x'.join(map(str, images.shape[2:]))}, mean "
        f"{float(latents.mean()):.3f}, standard deviation {float(latents.std()):.3f}"
    )
    description = f"{held_out.name} ({held_out.split}), {counted(len(images), 'image')}"
    print(f"{picture}: {description} come back at PSNR {psnr(images, decoded):.2f} dB")


def psnr(images: Tensor, decoded: Tensor) -> float:
    """Of all images together, uint8 of one shape, in decibels; infinite where they are equal."""
    error = float((images.double() - decoded.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
