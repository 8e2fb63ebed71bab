"""A spiking network run as an event-driven device runs it: linear maps keep sums and add events, never recomputing.

`SpikingNetwork` computes every pass anew from whole levels, so nothing in it can drift. A device cannot afford that: it
keeps an accumulator for each output of a linear map and adds weight · event for every event (docs/theory.md, "What a
device that only adds does").
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from ..config import check_int, require
from ..errors import UserError
from ..neurons import Clock, IFNeuron
from ..ptq.calls import copied
from .accumulators import Accumulator, Arithmetic, LinearMap
from .network import SpikingNetwork
from .trace import CONVOLUTIONS, Description, copies


def as_device(
    snn: SpikingNetwork,
    *args: object,
    accumulators: str = "int32",
    weight_bits: int = 8,
    refresh: int = 0,
    **kwargs: object,
) -> DeviceNetwork:
    """A copy of `snn` in which convolutions and linear layers that read levels keep sums and add events to them.

    accumulators: "int32" with weights of `weight_bits` bits (one scale per output channel, or the layer's own where
    its weights are whole multiples of a step), which is exact; "float64", "float32", "float16", "bfloat16" with the
    network's weights. refresh: empty the sums every so many carried calls and send all levels anew; 0: never.
    args, kwargs: an example of a call, where `snn.describe` needs one.

    It is called as `snn` is. Under `carrying()` sums are kept from call to call, as levels are; a call from rest
    begins with empty ones. Linear maps that read real values, products, and norms are computed as they are.

    Raises UserError for what cannot be carried (neurons that take nothing back, the published dynamics), for networks
    of which no convolution or linear layer reads levels, for levels with an offset, and for networks in half precision.
    """
    require(isinstance(snn, SpikingNetwork), f"a {type(snn).__name__} sends no events: convert it first")
    arithmetic, refresh = Arithmetic(accumulators, weight_bits), check_int(refresh, "refresh")
    require(refresh >= 0, f"refresh={refresh}: use 1 or more calls, or 0 for never")
    snn.check_carrying()
    coarse = [name for name, p in snn.net.named_parameters() if p.is_floating_point() and p.dtype.itemsize < 4]
    require(not coarse, f"{', '.join(coarse[:1])} is in half precision, which does not tell levels apart: use .float()")
    description = snn.describe(*args, **kwargs)
    readers = _readers(snn, description)
    return DeviceNetwork(copied(snn), arithmetic, readers, refresh)


def _readers(snn: SpikingNetwork, description: Description) -> dict[str, int]:
    """Layers that read levels alone, and whose weights do not depend on the call → magnitude of the largest level."""
    neurons = dict(snn.neurons())
    offsets = [name for name, neuron in neurons.items() if neuron.levels.has_offset]
    require(not offsets, f"accumulators add whole events, and the levels of {', '.join(offsets[:1])} have an offset")
    readers: dict[str, int] = {}
    for synapses in description.synapses:
        if synapses.spikes and len(synapses.reads) == 1 and ":" not in synapses.name:  # no part of torch's attention
            levels = [neurons[name].levels for name in synapses.reads[0]]
            largest = max(max(abs(layer_levels.lo), abs(layer_levels.hi)) for layer_levels in levels)
            readers[synapses.name] = max(largest, readers.get(synapses.name, 0))
    for synapses in description.synapses:
        if len(synapses.reads) > 1:
            readers.pop(synapses.name, None)
    require(bool(readers), "no convolution or linear layer reads levels alone: there is nothing to add events to")
    return readers


class DeviceNetwork(SpikingNetwork):
    """See `as_device`, which makes it. accumulators: those in use, by (name of the layer, n-th call of a pass)."""

    def __init__(self, snn: SpikingNetwork, arithmetic: Arithmetic, readers: dict[str, int], refresh: int) -> None:
        super().__init__(snn.net, snn.clock)
        self.arithmetic, self.readers, self.refresh = arithmetic, readers, refresh
        self.accumulators: dict[tuple[str, int], Accumulator] = {}
        self.carried_calls = 0  # since the last one from rest
        self._description, self._forms = snn._description, None
        self.train(snn.training)

    def reset(self) -> None:
        """Forget all levels and sums."""
        super().reset()
        self.accumulators.clear()
        self.carried_calls = 0

    def drift(self) -> dict[str, float]:
        """Layer → relative L2 error of its sums, against those of the levels it has been sent; inside `carrying`."""
        errors: dict[str, float] = {}
        for (name, _), accumulator in self.accumulators.items():
            errors[name] = max(accumulator.error(), errors.get(name, 0.0))
        return errors

    def _carry_on(self, args: tuple, kwargs: dict, steps: int | str) -> Any:
        self.carried_calls += 1
        if self.refresh and self.carried_calls % self.refresh == 0:
            for accumulator in self.accumulators.values():
                accumulator.empty()
        return super()._carry_on(args, kwargs, steps)

    def _chunk_size(self, args: tuple, kwargs: dict) -> int:
        return 1  # a device runs step by step

    def _chunk(self, args: tuple, kwargs: dict, steps: int, before: object = None) -> object:
        following = _Pass(self.net, self.clock, self.arithmetic, self.readers, self.accumulators)
        with torch.no_grad(), following.attached():
            return super()._chunk(args, kwargs, steps, before)


class _Pass(TorchFunctionMode):
    """One time step: every tensor of levels has its whole levels beside it, and what a level is worth in each place."""

    def __init__(
        self,
        net: nn.Module,
        clock: Clock,
        arithmetic: Arithmetic,
        readers: dict[str, int],
        accumulators: dict[tuple[str, int], Accumulator],
    ) -> None:
        super().__init__()
        self.net, self.arithmetic, self.readers, self.accumulators = net, arithmetic, readers, accumulators
        self.share = clock.paces()[0].share
        self.levels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.worths: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inside: list[str] = []
        self.neurons = {name for name, module in net.named_modules() if isinstance(module, IFNeuron)}
        self.turns: Counter = Counter()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks, and this mode, while the context is open."""
        handles = []
        for name, module in self.net.named_modules():
            # What is within a layer that reads levels may be a layer of its own, that does not.
            if name not in self.neurons and not any(f"{name}.".startswith(f"{reader}.") for reader in self.readers):
                continue
            enter = lambda *_, name=name: self.inside.append(name)  # noqa: E731
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        self.inside.pop()
        if isinstance(module, IFNeuron) and not module.is_constant and args and isinstance(output, Tensor):
            worth = module.neurons(args[0]).worth / self.share
            levels, worths = (output / worth).round(), worth.to(output.dtype).expand_as(output).clone()
            self.levels[output], self.worths[output] = levels, worths

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        name = self.inside[-1] if self.inside else ""
        if name in self.neurons:  # how a neuron finds its level is its own affair
            return func(*args, **kwargs)
        if name in self.readers and (func is F.linear or func in CONVOLUTIONS):
            answer = self._accumulated(name, *LinearMap.of(func, args, kwargs))
            if answer is not None:
                return answer
        out = func(*args, **kwargs)
        if copies(func, kwargs):
            self._copy(func, args, kwargs, out)
        return out

    def _copy(self, func: Callable, args: tuple, kwargs: dict, out: object) -> None:
        """Do with levels what a function has done with what they are worth. Beside real values stands 0."""
        if not any(isinstance(value, Tensor) and value in self.levels for value in pytree.tree_leaves((args, kwargs))):
            return
        writes = func is Tensor.__setitem__
        answers = [args[0]] if writes else [v for v in pytree.tree_leaves(out) if isinstance(v, Tensor)]
        for held in (self.levels, self.worths):
            given, named = pytree.tree_map(lambda value, held=held: _beside(value, held), (args, kwargs))
            copied = func(*given, **named)
            for value, copy in zip(answers, pytree.tree_leaves(given[0] if writes else copied), strict=True):
                held[value] = copy

    def _accumulated(self, name: str, linear: LinearMap, x: Tensor, weight: Tensor) -> Tensor | None:
        """What a linear map in module `name` answers to x; None where x holds more than levels, as NaN."""
        turn = self.turns[name]
        self.turns[name] += 1
        levels, worths = self.levels.get(x), self.worths.get(x)
        # What was written into in passing, or holds real values, shows here.
        if levels is None or not bool((levels * worths - x).abs().max() <= 1e-5 * worths.max()):
            return None
        with torch.autocast(x.device.type, enabled=False):
            accumulator = self.accumulators.get((name, turn))
            if accumulator is None:
                worth = _by_channel(worths * self.share, linear.channels)
                if worth is None:
                    return None
                accumulator = self.accumulators[name, turn] = self._made(name, linear, weight, worth)
            sums = accumulator.add(linear, levels)
            answer = sums.to(x.dtype) * (accumulator.scale / self.share).to(x.dtype)
            return answer if linear.bias is None else answer + linear.per_output(linear.bias)

    def _made(self, name: str, linear: LinearMap, weight: Tensor, worth: Tensor) -> Accumulator:
        integer_weight = getattr(self.net.get_submodule(name), "whole_weight", lambda: None)()
        if integer_weight is not None:
            integers, step = integer_weight
            if not torch.allclose(integers * step, weight, rtol=1e-5, atol=0):  # it was called with another weight
                integer_weight = None
        try:
            return Accumulator(linear, weight, worth, self.arithmetic, integer_weight, self.readers[name])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def _beside(value: object, held: WeakIdKeyDictionary) -> object:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return held[value] if value in held else torch.zeros_like(value)


def _by_channel(worths: Tensor, axis: int) -> Tensor | None:
    """What a level is worth, [] or [channels], from every place of an input; None where a channel has several.

    Where nothing but zeros are, as in padding, it does not matter.
    """
    rows = worths.movedim(axis, 0).flatten(1)
    largest = rows.amax(1)
    if not bool(((rows == largest[:, None]) | (rows == 0)).all()):
        return None
    positive = largest[largest > 0]
    return positive[0] if len(positive) and bool((positive == positive[0]).all()) else largest
