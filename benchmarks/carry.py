"""What a sampler costs whose network sends spikes only for what changes from call to call, in one table.

    python -m benchmarks.carry --checkpoint logs/demo/ckpt.pt --out logs/demo/carry.json

One row for every η of DDIM and every way of carrying: all on the states that the quantized network itself visits, which
are those of its spiking networks. Counted per image and call: spikes, the synapses' operations that events touch, and
energies beside the baselines (docs/cost.md). Before anything is counted, the carried network's answers are compared
with the quantized network's, in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

import ann2snn
from ann2snn.config import SampleConfig, SpikingConfig, require
from ann2snn.convert import SpikingNetwork, relative_error
from ann2snn.cost import FP32, INT8, CostReport
from ann2snn.errors import UserError, one_line
from ann2snn.files.atomic import write_text
from ann2snn.generate.sampling import generate
from ann2snn.run.tables import text_table

#: Ways of carrying: any number of units at once in data-flow order, or so many a time step until silence.
WAYS = {
    "layer_sync": SpikingConfig(),
    "stream, m = 3": SpikingConfig("stream", burst=3, settle_steps="auto"),
    "stream, m = 1": SpikingConfig("stream", settle_steps="auto"),
}
HEADER = ["eta", "way", "spikes", "of rest", "carried", "steps", "AC share", "fp32", "+mem", "int8", "+mem"]
BASELINES = {
    "b-bit ANN, dense": "quantized",
    "b-bit ANN, zeros skipped": "quantized_skipping_zeros",
    "b-bit ANN, differences": "quantized_differences",
}
Trajectory = list[tuple[Tensor, Tensor]]


def trajectory_of(ann: torch.nn.Module, sample: SampleConfig, images: int) -> Trajectory:
    """What the network is called with, x [images, C, H, W] and t [images], on its own way from noise to images."""
    calls: Trajectory = []
    generate(ann, sample, range(images), on_call=lambda x, t: calls.append((x.clone(), t.clone())))
    return calls


@torch.no_grad()
def worst_error(ann: torch.nn.Module, snn: SpikingNetwork, calls: Trajectory) -> float:
    """The largest relative error of a carried call against the quantized network."""
    with snn.carrying():
        return max(relative_error(snn(x, t), ann(x, t)) for x, t in calls)


def row(eta: float, way: str, account: CostReport, rest: float, error: float) -> dict[str, object]:
    """A line of the table. rest: spikes of a call from rest under layer_sync."""
    later = account.later or account
    energy = {prices.name: account.energy(prices).to_dict() for prices in (FP32, INT8)}
    return {
        "eta": eta,
        "way": way,
        "spikes": account.total("spikes"),
        "share_of_rest": account.total("spikes") / rest,
        "carried_share_of_rest": later.total("spikes") / rest,
        "steps_run": account.steps_run,
        "carried_ac_share": later.total("ac") / account.total("synapses"),
        "touched_neurons": account.touched_neurons,
        "worst_error": error,
        "energy": energy,
    }


def baseline(eta: float, name: str, account: CostReport, way: str) -> dict[str, object]:
    energy = {prices: found.to_dict() for prices, found in account.energies()[way].items()}
    return {"eta": eta, "way": name, "energy": energy}


def measure(ann: torch.nn.Module, etas: list[float], steps: int, images: int, seed: int, quick: bool) -> list[dict]:
    """Rows for every η: the ways of carrying, the network from rest, and the baselines."""
    rows = []
    for eta in etas:
        sample = SampleConfig("ddim", steps, eta, seed=seed)
        calls = trajectory_of(ann, sample, images)
        from_rest = ann2snn.cost(ann2snn.convert(ann), trajectory=calls)
        rest = from_rest.total("spikes")
        rows.append(row(eta, "layer_sync, from rest", from_rest, rest, 0.0))
        for way, config in list(WAYS.items())[: 1 if quick else None]:
            snn = ann2snn.convert(ann, config)
            error = worst_error(ann, snn, calls)
            rows.append(row(eta, f"{way}, carried", ann2snn.cost(snn, trajectory=calls, carry=True), rest, error))
            print(
                f"eta {eta:g}, {way}: {rows[-1]['share_of_rest']:.1%} of the spikes, worst error {error:.1e}",
                flush=True,
            )
        plain = ann2snn.cost(ann, trajectory=calls)
        rows += [baseline(eta, name, plain, way) for name, way in BASELINES.items()]
        rows.append(baseline(eta, "fp32 ANN", plain, "fp32"))
    return rows


def cells(line: dict) -> list[str]:
    """A row as text; energies in microjoules per image and call, arithmetic alone and with memory."""

    def of(name: str, form: str) -> str:
        return format(line[name], form) if name in line else "–"

    energies = []
    for prices in ("fp32", "int8"):
        found = line["energy"].get(prices)
        energies += ["–", "–"] if found is None else [f"{found[k] / 1e6:.1f}" for k in ("compute_pj", "total_pj")]
    counts = [of("spikes", ",.0f"), of("share_of_rest", ".1%"), of("carried_share_of_rest", ".1%")]
    return [f"{line['eta']:g}", line["way"], *counts, of("steps_run", ".2f"), of("carried_ac_share", ".1%"), *energies]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--checkpoint", type=Path, required=True, help="a quantized network: ckpt.pt")
    found.add_argument("--out", type=Path, help="write the rows as JSON")
    found.add_argument("--eta", type=float, nargs="+", default=[0.0, 0.3, 0.6, 1.0], help="noise of DDIM")
    found.add_argument("--steps", type=int, default=50, help="network calls an image")
    found.add_argument("--images", type=int, default=2, help="averaged over")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--quick", action="store_true", help="layer_sync alone")
    return found


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        ann = ann2snn.load(given.checkpoint).double()
        require(not isinstance(ann, SpikingNetwork), f"{given.checkpoint} is a spiking network: give its ANN's ckpt.pt")
        rows = measure(ann, given.eta, given.steps, given.images, given.seed, given.quick)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(text_table(HEADER, [cells(line) for line in rows]))
    print("energies in µJ per image and call, arithmetic, then with memory; weights read once a call")
    how = {
        "command": "python -m benchmarks.carry " + " ".join(arguments if arguments is not None else sys.argv[1:]),
        "network": dataclasses.asdict(ann.config) | {"predicts": ann.diffusion.mean_type},
        "sampler": f"ddim, {given.steps} calls",
        "seed": given.seed,
        "images": given.images,
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if given.out is not None:
        write_text(given.out, json.dumps(how | {"rows": rows}, indent=1) + "\n")
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
