"""What batch norm costs a quantized U-Net in place of group norm: both trained alike, small, on the shipped images.

    python -m benchmarks.norms --steps 2000 --images 1000 --out docs/figures/norms.json

Loss and distance: see benchmarks.small_networks. Gap: of the converted network under layer_sync. Seconds: of the
training. Prints a table; --out keeps it with how it was measured, as JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import ann2snn
from ann2snn.data import to_model_range
from benchmarks import small_networks as small

NORMS = ("group", "batch")


def measured(norm: str, bits: int, steps: int, scored: int, real: tuple) -> dict[str, object]:
    """One row of the table. real: see `small_networks.distance`."""
    began = time.perf_counter()
    net = small.trained(small.network(bits=bits, norm=norm), steps)
    seconds = time.perf_counter() - began
    x = to_model_range(small.pictures(train=False)[:4]).double()
    exact = net.double()
    gap = ann2snn.gap(exact, ann2snn.convert(exact), x, torch.tensor([50, 300, 600, 950])).prediction.error
    net = net.float()
    loss, distance = small.held_back_loss(net), small.distance(small.samples(net, scored), real)
    return {"norm": norm, "loss": loss, "distance": distance, "gap": gap, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each network")
    parser.add_argument("--bit", type=int, default=4, help="activation bits")
    parser.add_argument("--images", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    args = parser.parse_args()
    real = small.real_statistics()
    rows = [measured(norm, args.bit, args.steps, args.images, real) for norm in NORMS]
    small.publish({"steps": args.steps, "bits": args.bit, "images": args.images}, rows, args.out)


if __name__ == "__main__":
    main()
