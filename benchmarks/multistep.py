"""What rounded activations cost a multistep sampler: the score of PNDM by the number of predictions that it combines.

    python -m benchmarks.multistep --checkpoint fashion-mnist-32-4bit --stats stats/REFERENCE.npz \\
        --calls 20 --order 1 2 3 4 --bits 4 8 --out docs/figures/multistep.json

Order 4 is `--sampler pndm`; order 1 is DDIM's step, but for the first, which all orders take twice. Widths beyond the
network's own keep its weights and clips and give every quantizer finer levels: what that changes is due to rounding.
The score is the Fréchet distance of the same images of one seed on EfficientNet-Lite0 features; it is not the FID. What
--out has already is not measured again, so several commands can add rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

from torch import Tensor

from ann2snn.arguments import Parser
from ann2snn.checkpoints import checkpoint, shipped
from ann2snn.config import SampleConfig, require
from ann2snn.convert import SpikingNetwork
from ann2snn.diffusion.process import make_process, require_vp, size_of
from ann2snn.diffusion.samplers import sample_pndm
from ann2snn.distributed import launch
from ann2snn.files.atomic import file_hash, write_text
from ann2snn.generate.sampling import Rows, run_chain, to_uint8
from ann2snn.metrics.extractors import make_extractor
from ann2snn.metrics.score import score_numbered
from ann2snn.metrics.stats_file import read_stats
from ann2snn.nets.architecture import Network
from ann2snn.quant import QuantReLU
from ann2snn.run.tables import text_table
from benchmarks.carry import known_rows
from benchmarks.settling import environment

COLUMNS = ("calls", "bits", "order", "lower_order_final", "clip", "score")


def with_bits(net: Network, bits: int) -> None:
    """Give every quantizer of the network 2**bits levels between 0 and the clip it has."""
    for module in net.modules():
        if isinstance(module, QuantReLU) and module.quantizes:
            module.bits, module.levels = bits, 2**bits - 1


def images_of(net: Network, line: dict, count: int) -> Tensor:
    """The first `count` images of the row's seed, uint8 [count, C, H, W]."""
    process = make_process(net.diffusion, size_of(net))
    options = {name: line[name] for name in ("order", "lower_order_final", "clip")}

    def chain(rows: Rows) -> Tensor:
        return to_uint8(sample_pndm(rows.denoiser, process, rows.noise(), steps=line["calls"], **options))

    sample = SampleConfig("pndm", line["calls"], clip=line["clip"], seed=line["seed"])
    return run_chain(net, sample, range(count), chain)


def run(args: argparse.Namespace, about: dict[str, object]) -> list[dict]:
    """All rows, written to --out one by one. Raises UserError."""
    source = checkpoint.load(shipped.path_of(str(args.checkpoint)))
    require(
        not isinstance(source.net, SpikingNetwork), f"{args.checkpoint} is a spiking network: give its ANN's ckpt.pt"
    )
    require_vp(source.net.diffusion, "PNDM")
    extractor = make_extractor("lite0", resolution=args.lite0_size)
    reference = read_stats(args.stats, extractor.name, extractor.dim)
    known = {"checkpoint": source.hash, "step": source.step, "seed": args.seed, "images": args.images}
    known |= {"extractor": extractor.name, "reference": file_hash(args.stats), "reference_count": reference.count}
    rows = known_rows(args.out)
    for calls in args.calls:
        for bits in args.bits:
            for order in args.order:
                line = {"calls": calls, "bits": bits, "order": order, "clip": not args.no_clip} | known
                line["lower_order_final"] = args.lower_order_final
                if any(line.items() <= row.items() for row in rows):
                    continue
                with_bits(source.net, bits)
                batches = [(range(args.images), images_of(source.net, line, args.images))]
                scores = score_numbered(batches, extractor, reference, splits=1, total=args.images, progress=False)
                rows.append(line | {"score": float(scores[extractor.distance_key])})
                print("  ".join(cells(rows[-1])), flush=True)
                write_text(args.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return rows


def cells(row: dict) -> list[str]:
    """A row as text."""
    words = {True: "yes", False: "no"}
    return [
        *(str(row[name]) for name in ("calls", "bits", "order")),
        *(words[row[name]] for name in ("lower_order_final", "clip")),
        f"{row['score']:.1f}",
    ]


def table(rows: list[dict]) -> str:
    """Markdown, by calls, width and order."""
    header = ["calls", "activations", "predictions combined", "fewer in the last steps", "x_0 clipped", "FD"]
    ordered = sorted(
        rows, key=lambda row: (row["calls"], row["bits"], row["lower_order_final"], not row["clip"], row["order"])
    )
    lines = [header, ["---"] * len(header)]
    for calls, bits, *others in map(cells, ordered):
        lines.append([calls, f"{bits} bits", *others])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _parser() -> Parser:
    parser = Parser("python -m benchmarks.multistep", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="quantized ANN: ckpt.pt, folder, shipped")
    parser.add_argument("--stats", type=Path, required=True, help="reference statistics (evaluate.py --make_stats)")
    parser.add_argument("--out", type=Path, required=True, help="the rows as JSON")
    parser.add_argument("--calls", type=int, nargs="+", default=[20], help="network calls an image")
    parser.add_argument("--bits", type=int, nargs="+", default=[4], help="of the activations")
    parser.add_argument("--order", type=int, nargs="+", default=[4], choices=(1, 2, 3, 4), help="predictions combined")
    parser.add_argument("--lower_order_final", action="store_true", help="fewer of them in the last steps")
    parser.add_argument("--no_clip", action="store_true", help="do not clip the predicted image inside the chain")
    parser.add_argument("--images", type=int, default=300, help="images a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lite0_size", type=int, default=224, help="side that images are resized to for the features")
    return parser


def _main(args: argparse.Namespace, words: list[str]) -> int:
    about = {
        "command": "python -m benchmarks.multistep " + " ".join(words),
        "date": date.today().isoformat(),
        "machine": environment(),
    }
    print(text_table(COLUMNS, [cells(row) for row in run(args, about)]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    return launch.run(lambda: _main(_parser().parse_args(words), words), lambda: 1)


if __name__ == "__main__":
    sys.exit(main())
