"""What batch norm costs a quantized U-Net in place of group norm: all trained alike, small, on the shipped images.

    python -m benchmarks.norms --steps 2000 --images 1000 --out docs/figures/norms.json

Batch norm with one set of statistics, and with one for each of four parts of diffusion time (bins). Loss and distance:
see benchmarks.small_networks. Gap: of the converted network under layer_sync. Seconds: of the training. Prints a table;
--out keeps it with how it was measured, as JSON, one row after the other. --only measures some rows; the file keeps the
others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import ann2snn
from ann2snn.data import to_model_range
from benchmarks import small_networks as small
from benchmarks.settling import environment

#: Of each row, (norm, bins).
ROWS = {"group": ("group", 1), "batch": ("batch", 1), "batch4": ("batch", 4)}


def measured(norm: str, bins: int, bits: int, steps: int, scored: int, real: tuple) -> dict[str, object]:
    """One row of the table. real: see `small_networks.distance`."""
    began = time.perf_counter()
    net = small.trained(small.network(bits=bits, norm=norm, norm_bins=bins), steps)
    seconds = time.perf_counter() - began
    x = to_model_range(small.pictures(train=False)[:4]).double()
    exact = net.double()
    gap = ann2snn.gap(exact, ann2snn.convert(exact), x, torch.tensor([50, 300, 600, 950])).prediction.error
    net = net.float()
    loss, distance = small.held_back_loss(net), small.distance(small.samples(net, scored), real)
    numbers = {"norm": norm, "bins": bins, "loss": loss, "distance": distance, "gap": gap, "seconds": seconds}
    return numbers | environment()


def kept(path: Path | None, about: dict[str, object]) -> dict[tuple[str, int], dict[str, object]]:
    """Rows that a file has, by norm and bins. Raises ValueError for those measured in another way."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if about.items() - found["about"].items():
        raise ValueError(f"{path} was measured with other --steps, --bit or --images: choose another file")
    return {(row["norm"], row["bins"]): row for row in found["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each network")
    parser.add_argument("--bit", type=int, default=4, help="activation bits")
    parser.add_argument("--images", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure")
    args = parser.parse_args()
    real = small.real_statistics()
    about = {"steps": args.steps, "bits": args.bit, "images": args.images}
    rows = kept(args.out, about) | {
        ROWS[name]: measured(*ROWS[name], args.bit, args.steps, args.images, real) for name in args.only
    }
    small.publish(about, [rows[key] for key in ROWS.values() if key in rows], args.out)


if __name__ == "__main__":
    main()
