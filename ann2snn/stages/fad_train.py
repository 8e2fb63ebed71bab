"""Train the autoencoder of the Frechet autoencoder distance for another data set, and gather its statistics."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require
from ..data import ImageDataset, load_dataset
from ..data.loader import batches, to_model_range
from ..distributed.runtime import choose_device, seed_from
from ..distributed.world import ALONE
from ..errors import UserError
from ..files.atomic import sweep
from ..metrics.fad import MODES, FadExtractor, read_fad_stats
from ..metrics.fad_encoder import AutoEncoder, load_autoencoder, save_autoencoder
from ..metrics.weights import digest
from ..run.tables import counted
from .course import Course, Unfinished, owning, unfinished_path
from .fad import make_stats

MOST_STEPS, MOST_LR = 10**7, 100


def train(
    dataset: ImageDataset, latent: int, given: argparse.Namespace, device: torch.device, kept: Unfinished | None = None
) -> tuple[AutoEncoder, Course]:
    """The autoencoder in eval mode, and its training, whose `value` is the last step's squared error on −1…1.

    AdamW and mean squared error, as published. given: steps, batch_size, lr and seed. kept: where its state is, if
    anywhere. The global random state is neither read nor changed.

    Raises:
        UserError: the training diverged, or the settings are out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(given.seed))
        net = AutoEncoder(dataset.channels, latent, dataset.img_size.side)
    net = net.to(device).train()
    course = Course(net, torch.optim.AdamW(net.parameters(), lr=given.lr), kept=kept)

    def forward(step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        x = to_model_range(images).to(device)
        loss = F.mse_loss(net(x), x)
        return loss, loss

    course.run(batches(dataset, given.batch_size, seed=given.seed, start_step=course.step), given.steps, forward)
    return net.eval().requires_grad_(False), course


def stats_path(out: Path, mode: str) -> Path:
    """Where the statistics of a mode lie."""
    return out.with_name(f"{out.stem}_{mode}.npz")


def run(given: argparse.Namespace) -> None:
    """Train, and write the three files. Raises UserError."""
    out = given.out
    require(out.suffix == ".pth", f"--out={out}: must end in .pth")
    begun = unfinished_path(out).exists()  # then what there is may be its own
    for path in (out, *(stats_path(out, mode) for mode in MODES)):
        require(begun or not path.exists(), f"{path} exists: choose another --out, or remove it")
    require(1 <= given.steps <= MOST_STEPS, f"--steps={given.steps}: use 1 to {MOST_STEPS}")
    require(1 <= given.batch_size <= 65536, f"--batch_size={given.batch_size}: use 1 to 65536")
    require(0 < given.lr <= MOST_LR, f"--lr={given.lr}: use more than 0, {MOST_LR} at most")
    require(0 <= given.seed < 2**63, f"--seed={given.seed}: use 0 to 2^63 - 1")
    require(0 <= given.num_threads <= 1024, f"--num_threads={given.num_threads}: use 0 to 1024")
    if given.num_threads:
        torch.set_num_threads(given.num_threads)
    device = choose_device(given.device)
    training, held_out = (
        load_dataset(given.dataset_type, given.data_dir, given.img_size, train=part, channels=given.channels)
        for part in (True, False)
    )
    latent = given.latent if given.latent is not None else (64 if training.channels == 1 else 128)
    settings = {name: getattr(given, name) for name in ("steps", "batch_size", "lr", "seed", "img_size")}
    settings |= {"latent": latent, "dataset_type": training.name, "data_dir": training.fingerprint()}
    prepare(out.parent)
    with owning(out):
        net, course = train(training, latent, given, device, Unfinished.of(out, settings))
        write_encoder(out, net.cpu())
        work = f"{counted(given.steps, 'step')} on {counted(len(training), 'image')} of {training.name}"
        print(f"{out}: {work}, mean squared error {course.value:.4f}")
        for mode in MODES:
            path, extractor = stats_path(out, mode), FadExtractor(load_autoencoder(out), mode, device)
            if path.exists():
                read_fad_stats(path, extractor)  # of a run that ended between the two; another encoder's is refused
            else:
                make_stats(path, held_out, extractor, len(held_out), ALONE)
        course.finish()


def write_encoder(out: Path, net: AutoEncoder) -> None:
    """Write the encoder, unless an earlier run has just done that. Raises UserError for any other file there."""
    if os.path.lexists(out):
        same = digest(load_autoencoder(out).state_dict()) == digest(net.state_dict())
        require(same, f"{out} exists, and is another encoder: choose another --out, or remove it")
        return
    save_autoencoder(out, net)


def prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    sweep(folder, depth=0)
