"""Train the autoencoder of the Frechet autoencoder distance for another data set, and gather its statistics.

    python -m ann2snn.fad --dataset_type fashion_mnist_10k --out logs/fad/fashion10k.pth --steps 400 --batch_size 64

Writes OUT (a state dict in the layout of the published encoders) and beside it the statistics of the data set's
test images in both modes, OUT_published.npz and OUT_eval.npz (OUT without .pth), which evaluate.py takes with
--fad_encoder and --fad_stats.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..config import require
from ..data import ImageDataset, load_dataset
from ..data.datasets import DATASET_TYPES
from ..data.loader import batches, to_model_range
from ..distributed.runtime import choose_device, seed_from
from ..distributed.world import ALONE
from ..errors import UserError, one_line
from ..files.atomic import sweep
from ..metrics.fad import MODES, FadExtractor
from ..metrics.fad_encoder import WIDTHS, AutoEncoder, load_autoencoder, save_autoencoder
from ..output import unbreakable_output
from .fad import make_stats

PUBLISHED_BATCH, PUBLISHED_LR, PUBLISHED_EPOCHS = 250, 1e-3, 150
MOST_STEPS, MOST_LR = 10**7, 100


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(
        prog="python -m ann2snn.fad",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--out", type=Path, required=True, help="the encoder's file, ending in .pth")
    add("--dataset_type", choices=DATASET_TYPES, default="fashion_mnist_10k", help="data (default fashion_mnist_10k)")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the data set (default data)")
    add("--img_size", type=int, choices=tuple(WIDTHS), default=32, help="side in pixels (default 32)")
    add("--channels", type=int, choices=(1, 3), help="of --dataset_type folder (default 3)")
    add("--latent", type=int, help="length of the latent vector (default 64 for grey images, 128 for colour)")
    published = f"the published encoders were trained {PUBLISHED_EPOCHS} epochs"
    add("--steps", type=int, default=1000, help=f"training steps (default 1000); {published}")
    add("--batch_size", type=int, default=PUBLISHED_BATCH, help=f"(default {PUBLISHED_BATCH}, as published)")
    add("--lr", type=float, default=PUBLISHED_LR, help=f"of AdamW (default {PUBLISHED_LR}, as published)")
    add("--seed", type=int, default=0, help="(default 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    add("--num_threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    return made


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
        net = AutoEncoder(dataset.channels, latent, dataset.img_size)
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
    _prepare(out.parent)
    net, loss = train(training, latent, given.steps, given.batch_size, given.lr, given.seed, device)
    save_autoencoder(out, net.cpu())
    print(f"{out}: {given.steps} steps on {len(training)} images of {training.name}, mean squared error {loss:.4f}")
    for mode in MODES:
        extractor = FadExtractor(load_autoencoder(out), mode, device)
        make_stats(stats_path(out, mode), held_out, extractor, len(held_out), ALONE)


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    sweep(folder, depth=0)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    with unbreakable_output():
        try:
            run(parser().parse_args(sys.argv[1:] if arguments is None else arguments))
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            return 2
    return 0
