"""What classifier-free guidance costs in spikes, from rest and carried, in one table; and what it makes.

    python ANN_train.py --flagfile config/train_ANN/classes.txt
    python -m benchmarks.guidance --checkpoint logs/classes/ckpt.pt --out logs/classes/guidance.json
    python -m benchmarks.guidance --show docs/figures/guidance.json

A guided image is called twice at every step of its sampler, with its class and without: one batch of twice the rows.
Spikes and energies are per image, all calls and both branches together, on the path that the quantized network itself
takes, in float64; before they are counted, the carried network's answers are compared with the quantized network's.
"agreement" is the share of generated images that look like their class: whose nearest class mean among the training
images, in pixels, is that of the class that was asked for. It needs no extractor. --grid draws a class a column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig, require
from ann2snn.cost import FP32, INT8, CostReport, count_calls
from ann2snn.data import ImageDataset, load_dataset
from ann2snn.errors import UserError, one_line
from ann2snn.files.atomic import write_text
from ann2snn.files.plain import read_text
from ann2snn.generate.images import save_grid
from ann2snn.generate.probe import sampler_calls
from ann2snn.generate.sampling import generate_all
from ann2snn.run.tables import markdown_table
from ann2snn.stages.carrying import carried_errors
from benchmarks.settling import environment

MOST_BYTES = 2**24
ROWS = 3  # of a grid: images of each class


def class_means(data: ImageDataset) -> Tensor:
    """Mean image of every class, float64 [classes, pixels]. Raises UserError for images without classes."""
    data.check_classes(len(data.classes) or 1)
    pixels = data.all_images().flatten(1).double()
    return torch.stack([pixels[data.labels == label].mean(0) for label in range(len(data.classes))])


def agreement(images: Tensor, labels: Tensor, means: Tensor) -> float:
    """Share of images uint8 [N, C, H, W] whose nearest class mean is that of their label [N]."""
    nearest = torch.cdist(images.flatten(1).double(), means).argmin(1)
    return float((nearest == labels).double().mean())


def measured(ann: nn.Module, sample: SampleConfig, images: int) -> dict[str, object]:
    """One line: what `images` images, one class after the other, cost with the guidance of `sample`."""
    ann = ann.double()
    snn = ann2snn.convert(ann)
    calls = sampler_calls(ann, sample, images)
    worst = max(carried_errors(ann, snn, calls))
    from_rest, carried = count_calls(snn, calls), count_calls(snn, calls, carry=True)
    plain = count_calls(ann, calls)
    times = len(calls) * sample.branches  # rows of an image in all calls
    dense = plain.energies()["quantized_skipping_zeros"]
    return {
        "guidance": sample.guidance,
        "branches": sample.branches,
        "spikes_from_rest": times * from_rest.total("spikes"),
        "spikes_carried": times * carried.total("spikes"),
        "worst_error": worst,
        "energy_uj": {
            name: {prices.name: times * energy_of(report, prices) for prices in (FP32, INT8)}
            for name, report in (("from_rest", from_rest), ("carried", carried))
        }
        | {"ann": {prices: times * energy.to_dict()["total_pj"] / 1e6 for prices, energy in dense.items()}},
    }


def energy_of(report: CostReport, prices: object) -> float:
    """With memory, of a row of a call, in µJ."""
    return report.energy(prices).to_dict()["total_pj"] / 1e6


def table(rows: Sequence[dict]) -> str:
    """Markdown; shares are of the line without guidance."""
    first = rows[0]
    header = ["guidance w", "agreement", "spikes an image, from rest", "carried", "of those from rest"]
    header += ["carried, of w = 0", "int8 with memory: carried", "ANN that skips zeros", "largest error"]
    lines = [
        [
            f"{row['guidance']:g}",
            f"{row['agreement']:.0%}",
            f"{row['spikes_from_rest'] / 1e3:,.0f} k",
            f"{row['spikes_carried'] / 1e3:,.0f} k",
            f"{row['spikes_carried'] / row['spikes_from_rest']:.1%}",
            f"{row['spikes_carried'] / first['spikes_carried']:.2f}",
            f"{row['energy_uj']['carried']['int8']:,.0f} µJ",
            f"{row['energy_uj']['ann']['int8']:,.0f} µJ",
            f"{row['worst_error']:.0e}" if row["worst_error"] else "0",
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--checkpoint", type=Path, help="a class-conditional quantized network: ckpt.pt or a folder")
    result.add_argument("--out", type=Path, help="write the rows as JSON")
    result.add_argument("--show", type=Path, help="print the table of such a file, and measure nothing")
    result.add_argument("--grid", type=Path, help="folder for a picture of every guidance: a class a column")
    result.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    result.add_argument("--steps", type=int, default=20, help="calls of ddim, without noise")
    result.add_argument("--images", type=int, default=10, help="counted, and averaged over")
    result.add_argument("--looked_at", type=int, default=200, help="images that agreement is measured on")
    result.add_argument("--dataset_type", default="fashion_mnist_10k")
    result.add_argument("--data_dir", default="./data")
    result.add_argument("--seed", type=int, default=0)
    return result


def run(args: argparse.Namespace, about: dict[str, object]) -> list[dict]:
    """All rows, in the order of --guidance; written to --out. Raises UserError."""
    require(args.checkpoint is not None, "give --checkpoint, a class-conditional network, or --show")
    require(args.out is None or not args.out.exists(), f"{args.out} exists: name another file with --out")
    net = checkpoint.load(args.checkpoint).net
    classes = getattr(net, "num_classes", 0)
    require(classes > 0, f"{args.checkpoint} knows no classes: train one with --class_cond")
    data = load_dataset(args.dataset_type, args.data_dir, net.image_size)
    means, rows = class_means(data), []
    labels = torch.arange(args.looked_at) % classes
    for weight in args.guidance:
        sample = SampleConfig("ddim", args.steps, seed=args.seed, guidance=weight)
        images = generate_all(net.float(), sample, args.looked_at, 64, progress=False)
        if args.grid is not None:
            save_grid(images[: ROWS * classes], args.grid / f"guidance_{weight:g}.png", classes)
        rows.append(measured(net, sample, args.images) | {"agreement": agreement(images, labels, means)})
        print(f"measured: guidance {weight:g}", flush=True)
    real = {"real_agreement": agreement(data.all_images(), data.labels, means)}
    network = {"bits": net.config.bits, "image_size": net.image_size.stored, "data": f"{data.name} ({data.split})"}
    if args.out is not None:
        write_text(args.out, json.dumps(about | network | real | {"rows": rows}, indent=1) + "\n")
    return rows


def read_rows(path: Path) -> list[dict]:
    """Raises UserError for a file of something else."""
    try:
        rows = json.loads(read_text(path, MOST_BYTES))["rows"]
        table(rows)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{path} is no file of this benchmark") from None
    return rows


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    about = {
        "command": "python -m benchmarks.guidance " + " ".join(arguments if arguments is not None else sys.argv[1:]),
        **{name: getattr(args, name) for name in ("images", "looked_at", "seed", "steps")},
        "sampler": "ddim, eta 0",
        "extractor": "none: nearest class mean in pixels",
        "date": date.today().isoformat(),
        "machine": environment(),
    }
    try:
        rows = read_rows(args.show) if args.show else run(args, about)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
