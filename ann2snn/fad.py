"""Train the autoencoder of the Frechet autoencoder distance for another data set, and gather its statistics.

    python -m ann2snn.fad --dataset_type fashion_mnist_10k --out logs/fad/fashion10k.pth --steps 400 --batch_size 64

Writes OUT (a state dict in the layout of the published encoders) and beside it the statistics of the data set's
test images in both modes, OUT_published.npz and OUT_eval.npz (OUT without .pth), which evaluate.py takes with
--fad_encoder and --fad_stats. The same command continues an interrupted training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import Parser, exit_code_of
from .config import DATASET_TYPES

PUBLISHED_BATCH, PUBLISHED_LR, PUBLISHED_EPOCHS = 250, 1e-3, 150
SIDES = (32, 64)  # of images that encoders are defined for, in pixels


def parser() -> Parser:
    """The command line."""
    made = Parser("python -m ann2snn.fad", __doc__)
    add = made.add_argument
    add("--out", type=Path, required=True, help="the encoder's file, ending in .pth")
    add("--dataset_type", choices=DATASET_TYPES, default="fashion_mnist_10k", help="data (default fashion_mnist_10k)")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the data set (default data)")
    add("--img_size", type=int, choices=SIDES, default=32, help="side in pixels (default 32)")
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


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    return exit_code_of(lambda: _main(parser().read(arguments)))


def _main(given: argparse.Namespace) -> None:
    from .stages.fad_train import run  # what takes seconds to import is imported where it is used

    run(given)


if __name__ == "__main__":
    sys.exit(main())
