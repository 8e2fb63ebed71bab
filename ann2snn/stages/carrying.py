"""What a sampler's calls cost when levels are carried from one to the next; written down and printed."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import AUTO, SampleConfig
from ..convert import SpikingNetwork, relative_error
from ..cost import CostReport, count_calls
from ..files.atomic import write_text
from ..generate.probe import sampler_calls
from ..nets.architecture import Network
from ..report.costs import cost_table, parse_costs
from ..run.folder import CARRY_FILE
from ..run.tables import counted, text_table
from .cost import entry, price_lists

#: Calls of a trajectory that are counted: each takes as long as several calls.
MOST_CALLS = 250


@torch.no_grad()
def carried_errors(
    ann: nn.Module, snn: SpikingNetwork, calls: list[tuple[Tensor, ...]], steps: int | str = AUTO
) -> list[float]:
    """Relative L2 error of each carried call against the quantized network, in the order of the calls."""
    with snn.carrying(steps):
        return [relative_error(snn(*call), ann(*call)) for call in calls]


def measure_carrying(
    path: Path, ann: Network, snn: SpikingNetwork, sample: SampleConfig, images: int, name: str = "converted"
) -> None:
    """Count `ann`, and `snn` from rest and carried, on all calls that `sample` makes; write `path` and print the table.

    On copies in float64, on the path that the quantized network itself takes. A sampler with very many calls is left
    out, and told about.
    """
    count = sample.calls(ann.diffusion)
    if count > MOST_CALLS:
        print(
            f"carry: {counted(count, 'call')} per image are not counted; at most {MOST_CALLS} are, see --sampler_steps"
        )
        return
    ann, snn = copy.deepcopy(ann).double(), copy.deepcopy(snn).double()
    calls = sampler_calls(ann, sample.from_rest(), images)
    errors = carried_errors(ann, snn, calls, sample.carry_steps)
    rest = dataclasses.replace(count_calls(snn, calls), name=f"{name}, from rest,")
    carried = dataclasses.replace(count_calls(snn, calls, True, sample.carry_steps), name=name)
    content = {
        "images": images,
        "calls": count,
        "sampler": sample.sampler,
        "eta": sample.eta,
        "seed": sample.seed,
        "branches": sample.branches,
        "carry_steps": sample.carry_steps,
        "dtype": "float64",
        "inputs": "calls on the ANN's own sampling path",
        "errors": errors,
        "prices": price_lists(),
        "reports": [entry(report, count * sample.branches) for report in (count_calls(ann, calls), rest, carried)],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    print_carrying(content, rest, carried)


def print_carrying(content: dict, rest: CostReport, carried: CostReport) -> None:
    """The table, and the saving in a sentence."""
    costs = parse_costs(content, CARRY_FILE, notes=[])
    assert costs is not None  # it has reports
    header, rows, _ = cost_table(costs)
    print(text_table(header, rows))
    share = carried.total("spikes") / (rest.total("spikes") or 1)
    calls = counted(content["calls"], "call")
    print(
        f"carry: per image and call, mean of {calls} of {content['sampler']}; levels carried on take "
        f"{share:.1%} of the spikes; largest error of a call {max(content['errors']):.1e}"
    )
