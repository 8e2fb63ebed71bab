"""What it buys if neurons ignore small changes: spikes of carried calls against the error of the network's answers.

    python -m benchmarks.dead_zone --checkpoint logs/RUN/ckpt.pt --out docs/figures/dead_zone.json

A neuron with a dead zone d moves only where its input, in levels, is further than 1/2 + d from the level it holds; it
then moves to the quantizer's. So it is never further than 1/2 + d levels from its input, where the quantizer is never
further than 1/2 (inside its range). d = 0 is carrying as it is, with answers equal to the quantized network's.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import ann2snn
from ann2snn.checkpoints import shipped
from ann2snn.config import SampleConfig, require
from ann2snn.convert import SpikingNetwork, relative_error
from ann2snn.errors import UserError, one_line
from ann2snn.files.atomic import write_text
from ann2snn.generate.spikes import SpikeTally
from ann2snn.neurons import IFNeuron
from ann2snn.run.tables import text_table
from benchmarks.carry import scorer
from benchmarks.settling import environment


class DeadZoneNeuron(IFNeuron):
    """A neuron at once at its level, under layer_sync while levels are carried, that ignores small changes."""

    zone = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.is_constant:
            return self.quantizer(x)
        neurons = self.neurons(x)
        levels = neurons.levels
        level = self._state(lambda: neurons.rest(x))
        distance = ((x - levels.offset) / levels.step - level).abs()
        target = torch.where(distance > 0.5 + self.zone, neurons.target(x, 1.0), level)
        if report := self._report():
            report(target - level)
        self.states[self.at.turn] = target
        return target * neurons.worth + levels.offset

    def after_norm(self, *_: object, **__: object) -> None:
        """None: norm and neuron run one after the other."""


def with_dead_zone(ann: nn.Module, zone: float) -> SpikingNetwork:
    snn = ann2snn.convert(ann)
    for _, neuron in snn.neurons():
        neuron.__class__, neuron.zone = DeadZoneNeuron, zone
    return snn


@torch.no_grad()
def measure(ann: nn.Module, zone: float, calls: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Spikes per image and carried call, the first left out; and the mean relative error of all calls."""
    snn, errors, tally = with_dead_zone(ann, zone), [], SpikeTally()
    with snn.carrying():
        for index, (x, t) in enumerate(calls):
            with snn.monitored(tally if index else None):
                errors.append(relative_error(snn(x, t), ann(x, t)))
    spikes = float(tally.spikes.sum()) / len(calls[0][0]) / (len(calls) - 1)
    return {"zone": zone, "spikes": spikes, "error": sum(errors) / len(errors)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a quantized network: ckpt.pt")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--zone", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 1.0], help="in levels")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM, without noise")
    parser.add_argument("--images", type=int, default=2, help="counted")
    parser.add_argument("--score", type=int, default=0, help="images to score; 0: none")
    parser.add_argument("--stats", type=Path, help="reference statistics of --extractor lite0, for --score")
    args = parser.parse_args(arguments)
    try:
        ann = ann2snn.load(shipped.path_of(str(args.checkpoint))).double()
        require(not isinstance(ann, SpikingNetwork), f"{args.checkpoint} is a spiking network: give its ANN's ckpt.pt")
        score = scorer(args.score, args.stats, 224) if args.score else None
        calls = ann2snn.trajectory(ann, args.images, steps=args.steps)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    rows = []
    for zone in args.zone:
        line = measure(ann, zone, calls)
        if score is not None:
            line["score"] = score(with_dead_zone(ann, zone), SampleConfig("ddim", args.steps, carry=True))
        rows.append(line | {"share": line["spikes"] / (rows[0]["spikes"] if rows else line["spikes"])})
        print(rows[-1], flush=True)
    about = {
        "command": "python -m benchmarks.dead_zone " + " ".join(arguments if arguments is not None else sys.argv[1:]),
        "sampler": f"ddim, {args.steps} calls, eta 0, seed 0",
        "images": args.images,
        "scored": args.score,
        "date": date.today().isoformat(),
        "machine": environment(),
    }
    header = ["dead zone (levels)", "spikes", "of those without", "mean error", "score"]
    cells = [
        [f"{r['zone']:g}", f"{r['spikes']:,.0f}", f"{r['share']:.0%}", f"{r['error']:.2%}", f"{r.get('score', 0):.1f}"]
        for r in rows
    ]
    print(text_table(header, cells))
    if args.out is not None:
        write_text(args.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")
        print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
