"""Every group of measurements by the name that --only gives it, in the order they run."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator

import torch

from . import forward, gradient, int8, memory, peers, profiles, sampling, stream, training, weights
from .results import Bench, Section

GROUPS: dict[str, Callable[[Bench], Section | list[Section]]] = {
    "forward": forward.forward,
    "stream": stream.stream,
    "settle": stream.settle,
    "training": training.training,
    "bptt": gradient.bptt,
    "weights": weights.weights,
    "memory": memory.memory,
    "ddim50": sampling.ddim50,
    "steps": forward.against_steps,
    "batch": forward.against_batch,
    "width": forward.against_width,
    "samplers": sampling.samplers,
    "scan": peers.scan,
    "unets": peers.unets,
    "int8": int8.int8,
    "profile": profiles.profiles,
}


def measure(bench: Bench, names: tuple[str, ...]) -> Iterator[tuple[str, list[Section]]]:
    """(name, tables) of each group as soon as it is done; progress goes to stderr."""
    for name in names:
        start = time.monotonic()
        result = GROUPS[name](bench)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        yield name, result if isinstance(result, list) else [result]
