"""Inputs on which gap and cost are measured: states that a sampler really visits. No data set is needed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..config import SampleConfig
from ..diffusion.process import states_config
from .sampling import Given, Hooks, image_groups, walk
from .subject import Sampled

#: Arguments of a network, x and t, and of one that is told classes y [N].
State = tuple[Tensor, ...]


def sampler_states(net: Sampled, images: int, times: int, seed: int = 0) -> State:
    """x [images·times, C, H, W] and t [images·times] on the own sampling path of `net`, times spread over all of it.

    net: as in `sampling.generate`. Of one that is told classes, image i is of class i modulo their number.
    """
    steps = min(net.diffusion.diffusion_steps, 20)
    visited = sampler_calls(net, states_config(net.diffusion, steps, seed), images)
    picks = torch.linspace(0, len(visited) - 1, min(times, len(visited))).round().long().tolist()
    return _joined([visited[i] for i in picks])


def sampler_calls(net: Sampled, sample: SampleConfig, images: int, labels: Tensor | None = None) -> list[State]:
    """What `net` is called with while it makes images 0..images−1: x [images, C, H, W] and t [images], call by call.

    With guidance there are two rows an image. net, labels: as in `sampling.generate`.
    """
    groups: list[list[State]] = []
    for part in image_groups(net, range(images)):
        groups.append([])

        def keep(*call: Tensor) -> None:
            groups[-1].append(tuple(value.clone() for value in call))

        walk(net, sample, part, Given(labels=labels), Hooks(on_call=keep))
    return [_joined(calls) for calls in zip(*groups, strict=True)]


def halfway_state(net: Sampled, seed: int = 0) -> State:
    """x [1, C, H, W] and t [1] halfway along the network's own sampling path, the one that rasters are recorded on."""
    states = sampler_states(net, 1, 3, seed)
    middle = slice(len(states[0]) // 2, len(states[0]) // 2 + 1)
    return tuple(values[middle] for values in states)


def _joined(calls: Iterable[State]) -> State:
    """Several calls as one, argument by argument."""
    return tuple(map(torch.cat, zip(*calls, strict=True)))
