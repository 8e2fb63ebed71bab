"""Train an autoencoder, in whose latent space networks are then trained and sampled with --autoencoder OUT.

    ann2snn autoencoder --dataset_type fashion_mnist_10k --img_size 32 --out logs/latent/autoencoder.pt --steps 1000

Writes OUT, a checkpoint, and OUT.png (without .pt): images that it has not seen, and what comes back of them. The
latents that it makes have zero mean and unit variance. The same command continues an interrupted training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import Parser, exit_code_of
from ..config import DATASET_TYPES, SQUARE_32, ImageSize, read_size


def parser() -> Parser:
    """The command line."""
    made = Parser("ann2snn autoencoder", __doc__)
    add = made.add_argument
    add("--out", type=Path, required=True, help="a new file, ending in .pt")
    add("--dataset_type", choices=DATASET_TYPES, default="fashion_mnist_10k", help="data (default fashion_mnist_10k)")
    add("--data_dir", type=Path, default=Path("data"), help="folder of the data set (default data)")
    sides = "height and width, or HEIGHT,WIDTH (default 32); multiples of 2^halvings"
    add("--img_size", type=_size, default=SQUARE_32, help=sides)
    add("--channels", type=int, choices=(1, 3), help="of --dataset_type folder (default 3)")
    add("--latent_channels", type=int, default=4, help="channels of a latent (default 4)")
    add("--halvings", type=int, default=2, help="how often a side is halved (default 2: 32 pixels to 8)")
    add("--width", type=int, default=32, help="channels at full size, a multiple of 8 (default 32)")
    add("--kl_weight", type=float, default=1e-4, help="weight of the divergence from normal latents (default 1e-4)")
    add("--steps", type=int, default=5000, help="training steps (default 5000)")
    add("--batch_size", type=int, default=64, help="(default 64)")
    add("--lr", type=float, default=2e-3, help="of Adam at the start (default 2e-3), cosine to 0")
    add("--seed", type=int, default=0, help="(default 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    add("--num_threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")
    return made


def _size(text: str) -> ImageSize:
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for bad input, with one line on the standard error stream."""
    return exit_code_of(lambda: _main(parser().read(arguments)))


def _main(given: argparse.Namespace) -> None:
    from ..stages.autoencoder import run  # what takes seconds to import is imported where it is used

    run(given)
