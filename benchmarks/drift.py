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
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--net", type=Path, required=True, help="a quantized network: ckpt.pt")
    result.add_argument("--out", type=Path, help="write the rows as JSON")
    result.add_argument("--calls", type=int, default=1000, help="steps of the sampler")
    result.add_argument("--first", type=int, help="follow only the first so many of them")
    result.add_argument("--sums", nargs="+", default=WAYS, help="types, and after a slash every how many calls anew")
    result.add_argument("--images", type=int, default=1)
    result.add_argument("--weight_bits", type=int, default=8, help="of whole weights, sign included")
    result.add_argument("--seed", type=int, default=0)
    return result


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    rows: list[dict] = []
    try:
        first = args.calls if args.first is None else args.first
        require(min(args.calls, args.images, first) > 0, "--calls, --first and --images: use 1 or more")
        ways = [parsed(way) for way in args.sums]
        loaded = checkpoint.load(args.net)
        ann = loaded.net.double()
        require(not isinstance(ann, SpikingNetwork), f"{args.net} is a spiking network: give its ANN's ckpt.pt")
        trajectory = trajectory_of(ann, SampleConfig("ddim", args.calls, 0.0, seed=args.seed), args.images, first)
        snn = ann2snn.convert(ann)
        about = {
            "command": "python -m benchmarks.drift " + " ".join(arguments if arguments is not None else sys.argv[1:]),
            "network": ann.config.to_dict(),
            "step": loaded.step,
            "sampler": f"ddim, eta 0, {args.calls} calls",
            "images": args.images,
            "weight_bits": args.weight_bits,
            **environment(),
        }
        for kind, refresh in ways:
            for row in followed(snn, kind, refresh, trajectory, args.weight_bits):
                rows.append(row)
                print("  ".join(cells(row)), flush=True)
                if args.out is not None:  # a run that is stopped keeps what it has
                    write_text(args.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    print(text_table(HEADER, [cells(row) for row in rows]))
    print(f"{about['command']}; {about['processor']}, torch {about['torch']}, {about['date']}")
    if args.out is not None:
        print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
