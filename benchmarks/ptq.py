"""Quantizing a trained network against training the quantized one on, at 8, 6, 4, 3 and 2 bits.

    python -m benchmarks.ptq --steps 3000 --further 1000 --images 1000 --out docs/figures/ptq.json

One full-precision network is trained for --steps. Each row quantizes it as `ANN_train.py --init_from` does: its
activations calibrated on states of its own sampling path, its weights as they are; `trained` rows then train for
--further steps, with the first row, which stays in full precision, as their yardstick. Loss and distance: see
benchmarks.small_networks. Error: of the prediction against the full-precision network's, relative, on test pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ann2snn.config import FULL_PRECISION
from ann2snn.convert import relative_error
from ann2snn.data import to_model_range
from ann2snn.diffusion import VP
from ann2snn.training.initial import quantized_state
from benchmarks import small_networks as small

BITS = (FULL_PRECISION, 8, 6, 4, 3, 2)
COMPARED = 64  # test pictures, at times evenly spread


@torch.no_grad()
def predictions(net: nn.Module) -> Tensor:
    """Of the noise in test pictures, [N, 1, 16, 16]."""
    process = VP(net.diffusion)
    x_0 = to_model_range(small.pictures(train=False)[:COMPARED])
    t = ((torch.arange(COMPARED) + 0.5) / COMPARED * process.diffusion_steps).long()
    return net(process.diffuse(x_0, t, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))), t)


def rows_of(source: nn.Module, bits: int, further: int, scored: int, real: tuple) -> list[dict[str, object]]:
    """The network of `source` at so many bits: quantized, and trained on."""
    config, rows = replace(source.config, bits=bits), []
    begin, target = quantized_state(source, config, seed=0), predictions(source)
    for way, steps in (("quantized", 0), ("trained", further)):
        net = small.trained(config, steps, begin)
        row = {"bits": bits, "way": way, "loss": small.held_back_loss(net)}
        row["error"] = relative_error(predictions(net), target)
        row["distance"] = small.distance(small.samples(net, scored), real)
        print(
            "  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="training steps of the full-precision network")
    parser.add_argument("--further", type=int, default=1000, help="training steps of each quantized one")
    parser.add_argument("--images", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    args = parser.parse_args()
    source = small.trained(small.network(bits=FULL_PRECISION), args.steps)
    real = small.real_statistics()
    floor = small.distance(small.pictures(train=False)[: args.images], real)
    about = {"steps": args.steps, "further": args.further, "images": args.images, "real_distance": floor}
    rows = [row for bits in BITS for row in rows_of(source, bits, args.further, args.images, real)]
    small.publish(about, rows, args.out)


if __name__ == "__main__":
    main()
