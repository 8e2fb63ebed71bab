"""How far a device drifts whose linear maps only add events, in sums of which type, along a sampler's own trajectory.

    python -m benchmarks.drift --net logs/RUN/ckpt.pt --calls 1000 --out docs/figures/drift.json

The network is carried along the states that the quantized network visits (DDIM, η = 0), in float64 but for the sums of
the linear maps that read levels. After 1, 10, 100, … calls they are compared with what they should be: the sums with
those of the levels that the device itself has reached, and its levels with those of the exact network, which is given
the same states. The exact network of whole sums has their whole weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig, require
from ann2snn.convert import DeviceNetwork, SpikingNetwork, as_device, relative_error
from ann2snn.convert.accumulators import KINDS
from ann2snn.diffusion import ImageNoise
from ann2snn.diffusion.process import run_sampler
from ann2snn.errors import UserError, one_line
from ann2snn.files.atomic import write_text
from ann2snn.run.tables import text_table
from benchmarks.settling import environment

#: Type of the sums, and after a slash, every how many calls they are filled anew.
WAYS = ["float16", "float32", "float16/10", "int32", "bfloat16"]
Trajectory = list[tuple[Tensor, Tensor]]
HEADER = ["sums", "refresh", "calls", "error of sums", "worst layer", "levels that differ", "error of answer"]


class _EnoughError(Exception):
    """No more calls are wanted."""


@torch.no_grad()
def trajectory_of(ann: torch.nn.Module, config: SampleConfig, images: int, first: int) -> Trajectory:
    """The `first` calls on the network's own way from noise to images, x [images, C, H, W] and t [images]."""
    calls: Trajectory = []

    def called(x: Tensor, t: Tensor) -> Tensor:
        calls.append((x.clone(), t.clone()))
        if len(calls) == first:
            raise _EnoughError
        return ann(x, t)

    shape = (ann.in_channels, *ann.image_size)
    noise = ImageNoise(config.seed, list(range(images)), shape, torch.device("cpu"), next(ann.parameters()).dtype)
    with contextlib.suppress(_EnoughError):
        run_sampler(called, ann.diffusion, ann.image_size, config, noise)
    return calls


def checkpoints(calls: int) -> set[int]:
    """Calls after which to look: 1, 10, 100, … and the last."""
    return {10**power for power in range(len(str(calls))) if 10**power <= calls} | {calls}


def exact_twin(snn: SpikingNetwork, kind: str, weight_bits: int) -> DeviceNetwork:
    """The network of the same weights that computes its sums anew, exactly, in every call."""
    exact = "int32" if kind == "int32" else "float64"
    return as_device(snn, accumulators=exact, weight_bits=weight_bits, refresh=1)


def levels_of(snn: SpikingNetwork) -> list[Tensor]:
    """Of every neuron layer, while they are carried."""
    return [level for _, neuron in snn.neurons() for level in neuron.states]


def share_that_differs(actual: list[Tensor], expected: list[Tensor]) -> float:
    pairs = list(zip(actual, expected, strict=True))
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


@torch.no_grad()
def followed(
    snn: SpikingNetwork, kind: str, refresh: int, calls: Trajectory, weight_bits: int
) -> Iterator[dict[str, object]]:
    """A row for each of the `checkpoints` of one way of keeping sums."""
    device = as_device(snn, accumulators=kind, weight_bits=weight_bits, refresh=refresh)
    twin, started = exact_twin(snn, kind, weight_bits), time.perf_counter()
    with device.carrying():
        for number, (x, t) in enumerate(calls, start=1):
            answer = device(x, t)
            if number not in checkpoints(len(calls)):
                continue
            errors = device.drift()
            with twin.carrying():  # from rest: it has no past
                expected = twin(x, t)
                differing = share_that_differs(levels_of(device), levels_of(twin))
            yield {
                "sums": kind,
                "refresh": refresh,
                "calls": number,
                "mean_error": sum(errors.values()) / len(errors),
                "worst_error": max(errors.values()),
                "worst_layer": max(errors, key=errors.get),
                "levels_differing": differing,
                "answer_error": relative_error(answer, expected),
                "seconds_a_call": (time.perf_counter() - started) / number,
            }


def parsed(way: str) -> tuple[str, int]:
    """(type of the sums, refresh) of one of `WAYS`. Raises UserError."""
    kind, _, refresh = way.partition("/")
    require(kind in KINDS and (refresh.isdigit() or not refresh), f"--sums={way}: give a type such as float16/10")
    return kind, int(refresh or 0)


def cells(row: dict) -> list[str]:
    """A row as text."""
    values = [f"{row['mean_error']:.1e}", f"{row['worst_error']:.1e}", f"{row['levels_differing']:.2%}"]
    answer = f"{row['answer_error']:.1e}"
    return [row["sums"], str(row["refresh"] or "never"), str(row["calls"]), *values, answer]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--net", type=Path, required=True, help="a quantized network: ckpt.pt")
    found.add_argument("--out", type=Path, help="write the rows as JSON")
    found.add_argument("--calls", type=int, default=1000, help="steps of the sampler")
    found.add_argument("--first", type=int, help="follow only the first so many of them")
    found.add_argument("--sums", nargs="+", default=WAYS, help="types, and after a slash every how many calls anew")
    found.add_argument("--images", type=int, default=1)
    found.add_argument("--weight_bits", type=int, default=8, help="of whole weights, sign included")
    found.add_argument("--seed", type=int, default=0)
    return found


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    rows: list[dict] = []
    try:
        first = given.calls if given.first is None else given.first
        require(min(given.calls, given.images, first) > 0, "--calls, --first and --images: use 1 or more")
        ways = [parsed(way) for way in given.sums]
        loaded = checkpoint.load(given.net)
        ann = loaded.net.double()
        require(not isinstance(ann, SpikingNetwork), f"{given.net} is a spiking network: give its ANN's ckpt.pt")
        trajectory = trajectory_of(ann, SampleConfig("ddim", given.calls, 0.0, seed=given.seed), given.images, first)
        snn = ann2snn.convert(ann)
        how = {
            "command": "python -m benchmarks.drift " + " ".join(arguments if arguments is not None else sys.argv[1:]),
            "network": ann.config.to_dict(),
            "step": loaded.step,
            "sampler": f"ddim, eta 0, {given.calls} calls",
            "images": given.images,
            "weight_bits": given.weight_bits,
            **environment(),
        }
        for kind, refresh in ways:
            for row in followed(snn, kind, refresh, trajectory, given.weight_bits):
                rows.append(row)
                print("  ".join(cells(row)), flush=True)
                if given.out is not None:  # a run that is stopped keeps what it has
                    write_text(given.out, json.dumps(how | {"rows": rows}, indent=1) + "\n")
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(text_table(HEADER, [cells(row) for row in rows]))
    print(f"{how['command']}; {how['processor']}, torch {how['torch']}, {how['date']}")
    if given.out is not None:
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
