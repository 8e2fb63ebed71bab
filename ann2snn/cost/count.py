"""Operation counts of a real run; definitions of effective operations follow NeuroBench.

NeuroBench (Yik et al., arXiv:2304.04640): an operation is effective if neither its input nor its weight is zero;
biases do not count; a layer accumulates (AC) if all its inputs are in {−1, 0, 1}, and multiplies (MAC) otherwise.
Here a synapse accumulates wherever it reads events, changes of a level, as often as they have units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..config import AUTO, FULL_PRECISION, SpikingConfig, require
from ..convert import SpikingNetwork, convert
from ..convert.quantizers import reader_of
from ..distributed.precision import in_tf32
from ..distributed.runtime import evaluating
from ..nets.direct import DirectDenoiser
from ..neurons import Clock
from ..ptq.calls import Call, read_calls
from .account import CostReport
from .converted import DIFFERENCES, EventCounter
from .direct import DirectCounter
from .layers import ADDITIVE, LEVELS, SPIKES, LayerCost


@in_tf32(False)
def count_operations(
    net: nn.Module,
    x: Tensor,
    t: Tensor,
    spiking: SpikingConfig | None = None,
    batch_size: int = 16,
    y: Tensor | None = None,
) -> CostReport:
    """Count what a denoiser does for x [N, C, H, W], t [N], and classes y [N] where it is told them.

    Averages per image and network call, each from rest.

    net: a converted network, run as `spiking` says (default: as it is set), settling included; a directly trained
    one; or a quantized or full-precision one, whose `mac` skips zero activations and whose `dense` does not.

    Raises ValueError for an empty batch, UserError for what cannot be counted.
    """
    _check_is_network(net)
    if not len(x):
        raise ValueError("no images to count operations on")
    parts = (values.split(batch_size) for values in (x, t, y) if values is not None)
    batches = [Call(args, {}) for args in zip(*parts, strict=True)]
    return _count_direct(net, batches) if isinstance(net, DirectDenoiser) else _Run(net, spiking).report([batches])


@in_tf32(False)
def count_calls(
    net: nn.Module, trajectory: Sequence[object], carry: bool = False, carry_steps: int | str = AUTO
) -> CostReport:
    """Count the calls of a sampler for one batch of images: averages per image and call.

    trajectory: each call a tuple of positional arguments, a dict of keyword arguments, or a pair (tuple, dict). carry:
    keep a converted network's levels from call to call, see `SpikingNetwork.carrying`; of a quantized one, differences
    are counted anyway.

    Raises UserError for other calls, an empty trajectory, or calls of different numbers of images.
    """
    _check_is_network(net)
    calls = read_calls(trajectory, "trajectory")
    if isinstance(net, DirectDenoiser):
        return _count_direct(net, calls)
    sizes = sorted({_images(call) for call in calls})
    require(len(sizes) == 1, f"the calls of a trajectory have {', '.join(map(str, sizes))} images: give each the same")
    return _Run(net, None, carry, carry_steps).report([[call] for call in calls])


class _Run:
    """One network under one way of running it. A quantized one runs as its converted copy under layer_sync."""

    def __init__(
        self, net: nn.Module, spiking: SpikingConfig | None, carry: bool = False, carry_steps: int | str = AUTO
    ) -> None:
        self.is_ann = not isinstance(net, SpikingNetwork)
        quantized = any(reader_of(module) is not None for module in net.modules())
        self.snn: SpikingNetwork | None = None
        if isinstance(net, SpikingNetwork) or quantized:
            self.snn = net if isinstance(net, SpikingNetwork) else convert(net)
        self.net = net if self.snn is None else self.snn
        self.spiking = spiking or (None if self.snn is None else self.snn.spiking)
        self.carry, self.carry_steps = carry and not self.is_ann, carry_steps
        self.settle_steps, self.steps_run = 0, 0.0

    @torch.no_grad()
    def report(self, calls: list[list[Call]]) -> CostReport:
        """calls: one after the other, each in batches of images."""
        with evaluating(self.net), contextlib.ExitStack() as stack:
            if self.snn is not None:
                for call in itertools.chain(*calls):
                    self.snn.meet(*call)  # else a call that looks first would be counted twice
                stack.enter_context(self.snn.running_as(self.spiking))
            differs = self.is_ann and self.snn is not None and len(calls) > 1
            differences = _mean(self._count(calls, DIFFERENCES, carry=True)) if differs else None
            by_call = self._count(calls, LEVELS if self.is_ann else SPIKES, self.carry)
        window = self.snn.clock.spike_steps if self.snn is not None else 2**FULL_PRECISION - 1
        return CostReport(
            spiking=None if self.is_ann else self.spiking,
            bits=math.ceil(math.log2(window + 1)),
            images=sum(map(_images, calls[0])),
            depth=None if self.is_ann or self.snn is None else self.snn.depth,
            settle_steps=self.settle_steps,
            steps_run=self.steps_run,
            layers=_mean(by_call),
            window=window,
            calls=len(calls),
            carried=self.carry,
            first_layers=_mean(by_call[:1]) if self.carry else None,
            later_layers=_mean(by_call[1:]) if self.carry and len(by_call) > 1 else None,
            difference_layers=differences,
            spikes_by_call=() if self.is_ann else tuple(sum(c.spikes for c in layers.values()) for layers in by_call),
        )

    def _count(self, calls: list[list[Call]], counts: str, carry: bool) -> list[dict[str, LayerCost]]:
        """The layers of every call, per image."""
        snn = self.snn
        clock = Clock(SpikingConfig(), 1) if snn is None else snn.clock
        counter = EventCounter(self.net if snn is None else snn.net, clock, counts)
        images, by_call = sum(map(_images, calls[0])), []
        with contextlib.ExitStack() as stack:
            if snn is not None:
                stack.enter_context(snn.monitored(counter))
                if carry:
                    stack.enter_context(snn.carrying(self.carry_steps))
            for index, batches in enumerate(calls):
                rests = index == 0 or not carry
                for call in batches:
                    # What ever fires is told apart for the first call, from rest, and for those that carry on.
                    counter.begin(_images(call), rests=rests, anew=index <= carry)
                    with counter.attached(*call):
                        _check_answer(call.run(self.net))
                    if snn is not None and rests:  # a carried call has no window that settling comes on top of
                        self.settle_steps = max(self.settle_steps, snn.last_settle_steps)
                by_call.append(counter.take(images))
        self.steps_run = counter.image_steps / images / len(calls)
        return by_call


def _mean(calls: list[dict[str, LayerCost]]) -> tuple[LayerCost, ...]:
    """Layers of several calls, averaged; a layer that a call lacks did nothing in it."""
    if len(calls) == 1:
        return tuple(calls[0].values())
    latest = {name: layer for layers in calls for name, layer in layers.items()}
    return tuple(
        dataclasses.replace(
            layer,
            **{
                field: sum(getattr(layers[name], field) for layers in calls if name in layers) / len(calls)
                for field in ADDITIVE
            },
        )
        for name, layer in latest.items()
    )


def _count_direct(net: DirectDenoiser, batches: list[Call]) -> CostReport:
    counter, images = DirectCounter(net), sum(map(_images, batches))
    with torch.no_grad(), evaluating(net), counter.attached():
        for args, kwargs in batches:
            _check_answer(net(*args, **kwargs))
    steps_run = counter.image_steps / images
    return CostReport(net.spiking, net.config.bits, images, net.depth, 0, steps_run, counter.layers(images))


def _check_is_network(net: object) -> None:
    require(isinstance(net, nn.Module), f"cannot count the operations of a {type(net).__name__}: give a network")


def _check_answer(answer: object) -> None:
    """Raise UserError for NaN: neurons that are given it send nothing, and would be counted as silent."""
    values = (value for value in pytree.tree_leaves(answer) if isinstance(value, Tensor) and value.is_floating_point())
    spoilt = any(bool(value.isnan().any()) for value in values)
    require(not spoilt, "the network answers NaN, so its operations cannot be counted: check the calls and the weights")


def _images(call: Call) -> int:
    """Images of a call: the rows of its first tensor that has some."""
    tensors = (value for value in pytree.tree_leaves(call) if isinstance(value, Tensor) and value.dim())
    first = next(tensors, None)
    images = 0 if first is None else len(first)
    require(images > 0, "a call without a batch of images: give it a tensor [N, …]")
    return images
