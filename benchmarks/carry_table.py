"""The tables of docs/results.md on carrying, from the file that `benchmarks.carry` wrote.

python -m benchmarks.carry_table docs/figures/carry.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ann2snn.run.tables import markdown_table

WAYS = {
    "layer_sync, from rest": "spiking, from rest",
    "layer_sync, carried": "**spiking, carried**",
    "b-bit ANN, dense": "4-bit ANN, dense",
    "b-bit ANN, zeros skipped": "4-bit ANN, zeros skipped",
    "b-bit ANN, differences": "4-bit ANN that computes differences",
    "fp32 ANN": "fp32 ANN",
}
PARTS = (("fp32", "compute_pj"), ("fp32", "total_pj"), ("int8", "compute_pj"), ("int8", "total_pj"))


def microjoules(row: dict, prices: str, part: str) -> float:
    """Per image and network call."""
    return row["energy"][prices][part] / 1e6


def setting(row: dict) -> tuple:
    return row["sampler"], row["steps"], row["eta"]


def in_full(rows: Sequence[dict], samplers: Sequence[tuple]) -> str:
    """Every way of running, for the samplers `samplers`."""
    header = ["η", "network", "spikes", "of those from rest", "carried calls alone", "synapses' operations"]
    header += ["fp32 µJ", "with memory", "int8 µJ", "with memory"]
    lines = []
    for row in (row for key in samplers for way in WAYS for row in rows if setting(row) == key and row["way"] == way):
        counts = ["–"] * 4
        if "spikes" in row:
            shares = (row["share_of_rest"], row["carried_share_of_rest"], row["carried_ac_share"])
            counts = [f"{row['spikes']:,.0f}", *(f"{share:.1%}" for share in shares)]
        energies = [f"{microjoules(row, *at):.1f}" if at[0] in row["energy"] else "–" for at in PARTS]
        lines.append([f"{row['eta']:g}", WAYS[row["way"]], *counts, *energies])
    return markdown_table(header, lines)


def overview(rows: Sequence[dict]) -> str:
    """A line for every sampler: the carried network beside the ANN that skips zeros, per generated image."""
    header = ["sampler", "calls", "η", "FD", "spikes of those from rest", "synapses' operations"]
    header += [
        f"{name} an image: carried / ANN" for name in ("fp32 arithmetic", "fp32 with memory", "int8 with memory")
    ]
    lines = []
    for carried in (row for row in rows if row["way"] == "layer_sync, carried"):
        ann = next(row for row in rows if setting(row) == setting(carried) and row["way"] == "b-bit ANN, zeros skipped")
        calls = carried["steps"]
        energies = [
            f"{calls * microjoules(carried, *at) / 1e3:.2f} / {calls * microjoules(ann, *at) / 1e3:.2f} mJ"
            for at in (PARTS[0], PARTS[1], PARTS[3])
        ]
        cells = [carried["sampler"], str(calls), f"{carried['eta']:g}", f"{carried['score']:.1f}"]
        lines.append([*cells, f"{carried['share_of_rest']:.1%}", f"{carried['carried_ac_share']:.1%}", *energies])
    return markdown_table(header, lines)


def main(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    print(in_full(rows, [("ddim", 50, eta) for eta in (0.0, 0.6, 1.0)]), overview(rows), sep="\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="what benchmarks.carry wrote with --out")
    main(parser.parse_args().rows)
