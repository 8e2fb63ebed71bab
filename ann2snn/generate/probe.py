"""Inputs on which gap and cost are measured: states that a sampler really visits. No data set is needed."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from ..config import SampleConfig
from ..diffusion.process import states_config
from ..nets.architecture import Network
from .sampling import Given, Hooks, image_groups, walk
from .subject import Sampled

#: Arguments of a network, x and t, and of one that is told classes y [N].
State = tuple[Tensor, ...]


def sampler_states(net: Sampled, images: int, times: int, seed: int = 0) -> State:
    """x [images·times, C, H, W] and t [images·times] on the own sampling path of `net`, times spread over all of it.

    net: as in `sampling.generate`. Of one that is told classes, image i is of class i modulo their number.
    """
    return _spread(_visited(net, images, seed), times)


class OwnPath:
    """States on the own sampling path of a network, of images 0..images−1, in float64; walked once, whoever asks.

    net: the network's copy in float64.
    """

    def __init__(self, net: Network, images: int, seed: int = 0) -> None:
        self.net, self.images, self.seed = copy.deepcopy(net).double(), images, seed
        self._calls: list[State] = []

    def states(self, times: int, images: int | None = None) -> State:
        """As `sampler_states`; images: of the first so many."""
        return _spread(self._first(images), times)

    def calls(self, sample: SampleConfig, images: int) -> list[State]:
        """As `sampler_calls`, of the first `images`, along the same path where `sample` takes it."""
        is_own = sample == _own_sample(self.net, self.seed)
        return self._first(images) if is_own else sampler_calls(self.net, sample, images)

    def _first(self, images: int | None) -> list[State]:
        self._calls = self._calls or _visited(self.net, self.images, self.seed)
        return [tuple(value[:images] for value in call) for call in self._calls]

    def halfway(self) -> State:
        """x [1, C, H, W] and t [1] halfway along it, where rasters are recorded."""
        return _middle(self.states(3, 1))


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
    return _middle(sampler_states(net, 1, 3, seed))


def _visited(net: Sampled, images: int, seed: int) -> list[State]:
    """The calls of a path of at most 20."""
    return sampler_calls(net, _own_sample(net, seed), images)


def _own_sample(net: Sampled, seed: int) -> SampleConfig:
    return states_config(net.diffusion, min(net.diffusion.diffusion_steps, 20), seed)


def _spread(calls: list[State], times: int) -> State:
    """At most `times` of the calls, evenly spaced, as one."""
    picks = torch.linspace(0, len(calls) - 1, min(times, len(calls))).round().long().tolist()
    return _joined([calls[i] for i in picks])


def _middle(states: State) -> State:
    middle = slice(len(states[0]) // 2, len(states[0]) // 2 + 1)
    return tuple(values[middle] for values in states)


def _joined(calls: Iterable[State]) -> State:
    """Several calls as one, argument by argument."""
    return tuple(map(torch.cat, zip(*calls, strict=True)))
