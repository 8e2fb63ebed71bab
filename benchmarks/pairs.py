"""The first picture of the README: images of a quantized network, of its spiking network with levels carried, and the
difference of the two.

    python -m benchmarks.pairs --out docs/figures/pairs.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

import ann2snn

TITLES = ("quantized ANN", "spiking network,\nlevels carried", "difference × 8")


def draw(ann: Tensor, snn: Tensor, path: Path) -> None:
    """Images uint8 [n, 1, H, W] of both networks, in rows."""
    from matplotlib.figure import Figure

    difference = ((ann.int() - snn.int()).abs() * 8).clamp(max=255)
    figure = Figure(figsize=(0.72 * len(ann) + 1.6, 2.3))
    rows = figure.subplots(3, len(ann), gridspec_kw={"wspace": 0.04, "hspace": 0.06})
    for title, images, axes in zip(TITLES, (ann, snn, difference), rows, strict=True):
        for image, axis in zip(images, axes, strict=True):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("#999999")
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    figure.subplots_adjust(left=0.17, right=0.99, top=0.98, bottom=0.02)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="fashion-mnist-32-4bit", help="one that ships with the package")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50, help="of DDIM, without noise")
    args = parser.parse_args(arguments)
    try:
        ann = ann2snn.pretrained(args.network)
    except ann2snn.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sampling = {"sampler": "ddim", "steps": args.steps, "seed": 0}
    of_ann = ann2snn.sample(ann, args.images, **sampling)
    of_snn = ann2snn.sample(ann2snn.convert(ann), args.images, carry=True, **sampling)
    draw(of_ann, of_snn, args.out)
    print(f"{args.out}: largest difference {int((of_ann.int() - of_snn.int()).abs().max())} of 255 grey levels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
