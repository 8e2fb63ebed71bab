"""Train the autoencoder of the Frechet autoencoder distance for another data set, and gather its statistics."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..config import require
from ..data import ImageDataset, load_dataset
from ..data.loader import batches, to_model_range
from ..distributed.runtime import choose_device, seed_from
from ..distributed.world import ALONE
from ..errors import UserError
from ..files.atomic import sweep
from ..metrics.fad import MODES, FadExtractor
from ..metrics.fad_encoder import AutoEncoder, load_autoencoder, save_autoencoder
from ..run.tables import counted
from .fad import make_stats

MOST_STEPS, MOST_LR = 10**7, 100


def train(
    dataset: ImageDataset, latent: int, steps: int, batch_size: int, lr: float, seed: int, device: torch.device
) -> tuple[AutoEncoder, float]:
    """(autoencoder in eval mode, last step's mean squared error on the scale −1…1).

    AdamW and mean squared error, as published. The global random state is neither read nor changed.

    Raises:
        UserError: the training diverged, or the settings are out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed))
        net = AutoEncoder(dataset.channels, latent, dataset.img_size.side)
    net = net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    source, value = batches(dataset, batch_size, seed=seed), math.nan
    with tqdm(range(steps), "training", leave=False, disable=None) as bar:
        for step in bar:
            x = to_model_range(next(source)).to(device)
            loss = F.mse_loss(net(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0 or step == steps - 1:
                value = float(loss.detach())
                require(math.isfinite(value), f"the autoencoder diverged at step {step + 1}: lower --lr")
                bar.set_postfix(mse=f"{value:.4f}")
    finite = all(bool(torch.isfinite(entry).all()) for entry in net.state_dict().values())
    require(finite, "the autoencoder's weights are not finite: lower --lr")
    return net.eval().requires_grad_(False), value


def stats_path(out: Path, mode: str) -> Path:
    """Where the statistics of a mode lie."""
    return out.with_name(f"{out.stem}_{mode}.npz")


def run(given: argparse.Namespace) -> None:
    """Train, and write the three files. Raises UserError."""
    out = given.out
    require(out.suffix == ".pth", f"--out={out}: must end in .pth")
    for path in (out, *(stats_path(out, mode) for mode in MODES)):
        require(not path.exists(), f"{path} exists: choose another --out, or remove it")
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
    prepare(out.parent)
    net, loss = train(training, latent, given.steps, given.batch_size, given.lr, given.seed, device)
    save_autoencoder(out, net.cpu())
    work = f"{counted(given.steps, 'step')} on {counted(len(training), 'image')} of {training.name}"
    print(f"{out}: {work}, mean squared error {loss:.4f}")
    for mode in MODES:
        extractor = FadExtractor(load_autoencoder(out), mode, device)
        make_stats(stats_path(out, mode), held_out, extractor, len(held_out), ALONE)


def prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    sweep(folder, depth=0)
