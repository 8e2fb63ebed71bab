"""What a sampler costs whose network sends spikes only for what changes from call to call, in one table and picture.

    python -m benchmarks.carry --checkpoint logs/demo/ckpt.pt --out logs/demo/carry.json
    python -m benchmarks.carry --checkpoint logs/demo/ckpt.pt --sampler ddim dpmpp --steps 20 50 --eta 0 0.6 1 \\
        --score 300 --stats logs/demo/stats.npz --out logs/demo/carry.json --plot logs/demo/carry.png

One row for every checkpoint, sampler, number of steps, noise (η) and way of carrying: all on the states that the
quantized network itself visits, which are those of its spiking networks. Before anything is counted, the carried
network's answers are compared with the quantized network's, in float64. --score adds the Fréchet distance of so many
images of the quantized network, which are the carried one's. What --out has already is not measured again.

The columns, of which spikes, operations and energies are per image and call, the mean of all calls (docs/cost.md):

    spikes     of all neurons
    of rest    as a share of the spikes that are sent if every call starts from rest
    carried    the same share, of the carried calls alone: the first one starts from rest
    steps      passes of a call (1 under layer_sync, which takes depth × T time steps on a device)
    AC share   accumulates of the carried calls, as a share of one dense pass
    fp32, int8 energy of arithmetic, in µJ; +mem: with memory
    error      largest relative difference of an answer from the quantized network's
    score      Fréchet distance on EfficientNet-Lite0 features, which is not FID
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from torch import nn

import ann2snn
from ann2snn.checkpoints import checkpoint, shipped
from ann2snn.config import AUTO, SampleConfig, SpikingConfig, require
from ann2snn.convert import SpikingNetwork
from ann2snn.cost import FP32, INT8, CostReport, count_calls
from ann2snn.errors import UserError, one_line
from ann2snn.files.atomic import write_text
from ann2snn.files.plain import read_text
from ann2snn.generate.probe import sampler_calls
from ann2snn.generate.sampling import generate_batches
from ann2snn.metrics.extractors import make_extractor
from ann2snn.metrics.score import score_numbered
from ann2snn.metrics.stats_file import read_stats
from ann2snn.run.tables import text_table
from ann2snn.stages.carrying import carried_errors
from benchmarks.carry_figure import draw
from benchmarks.settling import environment

#: Ways of carrying: any number of units at once in data-flow order, or so many a time step until silence.
WAYS = {
    "layer_sync": SpikingConfig(),
    "stream, m = 3": SpikingConfig("stream", burst=3, settle_steps=AUTO),
    "stream, m = 1": SpikingConfig("stream", settle_steps=AUTO),
}
HEADER = [
    "bits", "sampler", "calls", "eta", "way", "spikes", "of rest", "carried", "steps", "AC share",
    "fp32", "+mem", "int8", "+mem", "error", "score",
]  # fmt: skip
BASELINES = {
    "b-bit ANN, dense": "quantized",
    "b-bit ANN, zeros skipped": "quantized_skipping_zeros",
    "b-bit ANN, differences": "quantized_differences",
    "fp32 ANN": "fp32",
}
MOST_BYTES = 2**24


@dataclass(frozen=True)
class Setting:
    """One checkpoint under one sampler."""

    source: checkpoint.Loaded
    sample: SampleConfig

    @property
    def ann(self) -> nn.Module:
        return self.source.net

    def key(self) -> dict[str, object]:
        """What tells its rows from others."""
        sample = self.sample
        return {
            "checkpoint": self.source.hash,
            "step": self.source.step,
            "bits": self.ann.config.bits,
            "predicts": self.ann.diffusion.mean_type,
            "sampler": sample.sampler,
            "steps": sample.calls(self.ann.diffusion),
            "eta": sample.eta,
            "seed": sample.seed,
        }


@dataclass(frozen=True)
class Measurement:
    """What is measured of a setting. ways: names in WAYS. carry_steps: fixed numbers of steps a carried call, m = 1.

    images: that are counted. score: of a network's images, None for no score.
    """

    images: int
    ways: tuple[str, ...]
    carry_steps: tuple[int, ...]
    score: Callable[[nn.Module, SampleConfig], float] | None

    def rows(self, setting: Setting) -> Iterator[dict[str, object]]:
        """From rest, every way of carrying, and the baselines."""
        ann, key = setting.ann.double(), setting.key()
        calls = sampler_calls(ann, setting.sample, self.images)
        score = self.score(ann, setting.sample) if self.score else None
        plain, from_rest = count_calls(ann, calls), count_calls(ann2snn.convert(ann), calls)
        spikes = from_rest.total("spikes")
        yield key | row("layer_sync, from rest", from_rest, spikes, 0.0, score)
        for name in self.ways:
            snn = ann2snn.convert(ann, WAYS[name])
            worst = max(carried_errors(ann, snn, calls))
            yield key | row(f"{name}, carried", count_calls(snn, calls, True), spikes, worst, score)
        for steps in self.carry_steps:
            snn = ann2snn.convert(ann, WAYS["stream, m = 1"])
            worst, counted = max(carried_errors(ann, snn, calls, steps)), count_calls(snn, calls, True, steps)
            sample = dataclasses.replace(setting.sample, carry=True, carry_steps=steps)
            of_its_own = self.score(snn, sample) if self.score else None
            yield key | row(f"stream, {steps} steps a call", counted, spikes, worst, of_its_own)
        for name, way in BASELINES.items():
            if way in plain.energies():
                energy = {prices: energy.to_dict() for prices, energy in plain.energies()[way].items()}
                yield key | {"way": name, "energy": energy, "score": score if way != "fp32" else None}


def row(way: str, account: CostReport, rest: float, error: float, score: float | None) -> dict[str, object]:
    """A line of the table. rest: spikes of a call from rest under layer_sync. score: of images made in this way."""
    later = account.later or account
    return {
        "way": way,
        "spikes": account.total("spikes"),
        "share_of_rest": account.total("spikes") / rest,
        "carried_share_of_rest": later.total("spikes") / rest,
        "steps_run": account.steps_run,
        "carried_ac_share": later.total("ac") / account.total("synapses"),
        "touched_neurons": account.touched_neurons,
        "worst_error": error,
        "energy": {prices.name: account.energy(prices).to_dict() for prices in (FP32, INT8)},
        "score": score,
    }


def scorer(images: int, stats: Path, resolution: int) -> Callable[[nn.Module, SampleConfig], float]:
    """(network, sampler) → Fréchet distance of its first `images` images, in single precision. Raises UserError."""
    extractor, reference = make_extractor("lite0", resolution=resolution), read_stats(stats)

    def score(net: nn.Module, sample: SampleConfig) -> float:
        batches = generate_batches(net.float(), sample, range(images), 64)
        scores = score_numbered(batches, extractor, reference, total=images)
        net.double()
        return float(scores[extractor.distance_key])

    return score


def settings(args: argparse.Namespace) -> list[Setting]:
    """Every combination, each once: η matters to ddim alone. Raises UserError."""
    combinations = []
    for path in args.checkpoint:
        source = checkpoint.load(shipped.path_of(str(path)))
        spiking = isinstance(source.net, SpikingNetwork)
        require(not spiking, f"{path} is a spiking network: give its ANN's ckpt.pt")
        for sampler in args.sampler:
            for steps in args.steps:
                for eta in args.eta if sampler == "ddim" else args.eta[:1]:
                    sample = SampleConfig(sampler, steps, eta if sampler == "ddim" else 0.0, seed=args.seed)
                    sample.check_fits(source.net.diffusion)
                    combinations.append(Setting(source, sample))
    return combinations


def cells(line: dict) -> list[str]:
    """A row as text; energies in microjoules per image and call, arithmetic alone and with memory."""

    def of(name: str, form: str) -> str:
        return format(line[name], form) if line.get(name) is not None else "–"

    energies = []
    for prices in ("fp32", "int8"):
        picojoules = line["energy"].get(prices)
        energies += (
            ["–", "–"] if picojoules is None else [f"{picojoules[k] / 1e6:.1f}" for k in ("compute_pj", "total_pj")]
        )
    counts = [of("spikes", ",.0f"), of("share_of_rest", ".1%"), of("carried_share_of_rest", ".1%")]
    setting = [str(line["bits"]), line["sampler"], str(line["steps"]), f"{line['eta']:g}", line["way"]]
    shares = [of("steps_run", ".2f"), of("carried_ac_share", ".1%")]
    return [*setting, *counts, *shares, *energies, of("worst_error", ".0e"), of("score", ".1f")]


def known_rows(path: Path | None) -> list[dict]:
    """Rows that an earlier run left. Raises UserError for a file of something else."""
    if path is None or not path.exists():
        return []
    try:
        return list(json.loads(read_text(path, MOST_BYTES))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no file of this benchmark: choose another --out") from None


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--checkpoint", type=Path, nargs="+", required=True, help="quantized networks: ckpt.pt, folder, shipped"
    )
    result.add_argument("--out", type=Path, help="write the rows as JSON")
    result.add_argument("--plot", type=Path, help="draw score against energy and time steps: a PNG; needs --score")
    result.add_argument("--sampler", nargs="+", default=["ddim"], help="one or more, as of evaluate.py")
    result.add_argument("--eta", type=float, nargs="+", default=[0.0, 0.3, 0.6, 1.0], help="noise of ddim")
    result.add_argument("--steps", type=int, nargs="+", default=[50], help="steps of the sampler")
    result.add_argument("--images", type=int, default=2, help="images counted, and averaged over")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--quick", action="store_true", help="layer_sync alone")
    result.add_argument("--carry_steps", type=int, nargs="*", default=[], help="also stream in so many steps a call")
    result.add_argument("--score", type=int, default=0, help="images to score; 0: no score")
    result.add_argument("--stats", type=Path, help="reference statistics of --extractor lite0, for --score")
    result.add_argument("--lite0_size", type=int, default=224, help="side in pixels of those statistics")
    return result


def run(args: argparse.Namespace, about: dict[str, object]) -> list[dict]:
    """All rows, written to --out setting by setting. Raises UserError."""
    require(not args.score or args.stats is not None, "--score needs --stats: see evaluate.py --make_stats")
    require(args.plot is None or args.score, "--plot draws scores: give --score and --stats")
    rows, combinations = known_rows(args.out), settings(args)
    score = scorer(args.score, args.stats, args.lite0_size) if args.score else None
    measurement = Measurement(args.images, tuple(WAYS)[: 1 if args.quick else None], tuple(args.carry_steps), score)
    for setting in combinations:
        key = setting.key()
        if any(key.items() <= line.items() for line in rows):
            continue
        for line in measurement.rows(setting):
            rows.append(line)
            print(f"measured: {line['sampler']}, {line['steps']} calls, eta {line['eta']:g}: {line['way']}", flush=True)
        if args.out is not None:
            write_text(args.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return rows


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    about = {
        "command": "python -m benchmarks.carry " + " ".join(arguments if arguments is not None else sys.argv[1:]),
        "images": args.images,
        "scored": args.score,
        "extractor": f"lite0 at {args.lite0_size} px" if args.score else None,
        "date": date.today().isoformat(),
        "machine": environment(),
    }
    try:
        rows = run(args, about)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(text_table(HEADER, [cells(line) for line in rows]))
    print("per image and call; energies in µJ, weights read once a call; --help explains the columns")
    if args.plot is not None:
        args.plot.write_bytes(draw(rows))
        print(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
