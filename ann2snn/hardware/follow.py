"""Following one pass of a converted network, and writing down what it does with levels as a graph.

Between neurons a network that NIR can express is affine in what it reads: a linear part, which becomes nodes, and a
constant, which is the same pass with nothing sent. What depends on diffusion time alone is constant too: time is given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..convert.trace import modules_watched
from ..errors import UserError
from ..neurons import IFNeuron, batch_norm_of_rows
from ..ptq.calls import leaves, map_tensors
from ..ptq.reach import Reach
from ..quant import UniformQuantizer
from . import words
from .graph import Graph
from .layout import Convolution, check_size, dense, doubled


@dataclass(frozen=True)
class Signal:
    """A value: the current of `node`, and what it is when no current flows.

    constant: like the value, of which it is a part. shape: [C, H, W] of the images that the node holds; a value of
    another shape has the same numbers in the same order. factor: f² pixels are channels of the node. rectified: what
    reads it takes negative values for 0, as neurons do that have no levels below.
    """

    node: str
    constant: Tensor
    shape: tuple[int, ...]
    factor: int = 1
    rectified: bool = False


class GridError(Exception):
    """An image of `side` pixels is up-sampled, and the grid is another's."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side


class Writer(TorchFunctionMode):
    """Writes `graph` while a pass of `net` runs inside `attached`.

    coarsest: side of the smallest image that is up-sampled; 0: none is. Raises, in the pass, `GridError` where it is
    another, and UserError for what NIR cannot express, naming the layer.
    """

    def __init__(self, net: nn.Module, graph: Graph, coarsest: int) -> None:
        super().__init__()
        self.graph, self.coarsest = graph, coarsest
        self.names = {module: name for name, module in net.named_modules()}
        self.inside: list[str] = []
        self.in_neuron: list[IFNeuron] = []
        self.signals: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.reach = Reach()

    __hash__ = object.__hash__

    @contextlib.contextmanager
    def attached(self, x: Tensor) -> Iterator[None]:
        """x [1, C, H, W] or [1, F]: the input to follow."""
        self.reach.mark(x)
        self.signals[x] = Signal(self.graph.input, torch.zeros_like(x), self.graph.shape)
        with modules_watched(self._enter, self._leave), self, self.reach:
            yield

    @property
    def place(self) -> str:
        return self.inside[-1] if self.inside and self.inside[-1] else "network"

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.place}: {why}")

    # ---- modules -----------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple) -> None:
        name = self.names.get(module)
        self.inside.append(name if name is not None else self.inside[-1] if self.inside else "")
        if isinstance(module, IFNeuron) and not module.is_constant:
            self.in_neuron.append(module)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        try:
            if self.in_neuron and self.in_neuron[-1] is module and isinstance(output, Tensor):  # else it failed
                self._neuron(self.in_neuron[-1], args[0], output)
        finally:
            if self.in_neuron and self.in_neuron[-1] is module:
                self.in_neuron.pop()
            self.inside.pop()

    def _neuron(self, module: IFNeuron, x: Tensor, output: Tensor) -> None:
        neurons = module.neurons(x)
        levels = neurons.levels
        if levels.before is not None:
            self.refuse(f"the function in front of its levels is real arithmetic: {words.QUANTIZE}")
        if levels.has_offset or not levels.lo <= 0 <= levels.hi:
            self.refuse("its levels have an offset, or leave out 0: use a quantizer whose answer to 0 is 0")
        if levels.level is not None and not isinstance(module.quantizer, UniformQuantizer):
            self.refuse(f"a {type(module.quantizer).__name__} does not round half up, as a threshold does: use quant's")
        if not neurons.takes_back and levels.hi < self.graph.spike_steps:
            self.refuse(
                f"its levels end at {levels.hi}, before the window of {self.graph.spike_steps} steps does, which only "
                "neurons that take spikes back are told: use signed=True (--signed)"
            )
        signal = self.signals.get(x)
        if signal is not None and signal.rectified and not (levels.lo == 0 and neurons.charge is None):
            self._refuse_function(torch.relu)
        if signal is None:
            if self.reach.has_marked(x):
                self.refuse(
                    "its input comes from an operation that cannot be followed: use a layer of docs/hardware.md"
                )
            signal = Signal("", x, self.images(x))
        values = {
            "step": self.values(levels.step, signal),
            "charge": self.values(x.new_tensor(0.5) if neurons.charge is None else neurons.charge, signal),
            "worth": self.values(neurons.worth, signal),
        }
        constant = self.values(signal.constant, signal)
        sources = [signal.node] if signal.node else []
        sources += self.graph.constant(self.place, constant, always=not sources)
        sent = self.graph.neuron(self.place, neurons, values, sources)
        self._note(output, Signal(sent, torch.zeros_like(output), signal.shape, signal.factor))

    # ---- functions ---------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if self.in_neuron:
            return func(*args, **kwargs)
        inputs = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        signals = [signal for signal in map(self.signals.get, inputs) if signal is not None]
        is_untraced = any(self.signals.get(value) is None and self.reach.has_marked(value) for value in inputs)
        still = map_tensors((args, kwargs), lambda v: v if (s := self.signals.get(v)) is None else s.constant.clone())
        out = func(*args, **kwargs)
        has_values = any(isinstance(value, Tensor) for value in leaves(out)) or words.name(func) in words.TELL
        if not has_values:
            return out  # a shape, a type
        if is_untraced or (signals and not isinstance(out, Tensor)):
            self.refuse(f"{words.name(func)} cannot be expressed in NIR")
        if signals:
            rectified = any(signal.rectified for signal in signals)
            if func in words.RECTIFIERS:
                self._note(out, replace(signals[0], rectified=True))
                return out
            if rectified and func not in words.VIEWS | words.COPIES:
                self._refuse_function(torch.relu)
            signal = self._translated(func, args, kwargs, out, func(*still[0], **still[1]))
            self._note(out, replace(signal, rectified=rectified))
        return out

    def _note(self, value: Tensor, signal: Signal) -> None:
        self.reach.mark(value)
        self.signals[value] = signal

    def _translated(self, func: Callable, args: tuple, kwargs: dict, out: Tensor, constant: Tensor) -> Signal:
        """What `func` does, in nodes."""
        first = self.signals.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if func is torch.conv2d and first is not None:
            return self._convolution(first, words.bound(words.CONVOLUTION, args, kwargs), constant)
        if func is F.linear and first is not None and out.dim() == 2:
            return self._linear(first, args[1] if len(args) > 1 else kwargs["weight"], constant)
        if func in (F.batch_norm, batch_norm_of_rows) and first is not None:
            return self._batch_norm(args[0], words.bound(words.BATCH_NORM, args, kwargs), constant)
        if func in words.ADDITIONS | words.DIFFERENCES and "alpha" not in kwargs:
            return self._sum(func, args[:2] if len(args) > 1 else (args[0], kwargs["other"]), constant)
        if func in words.PRODUCTS | words.SIGNS:
            return self._product(func, args, kwargs, constant)
        if func in words.JOINS:
            return self._joined(args, kwargs, constant)
        if func in words.COPIES and first is not None and words.interpolation(args, kwargs).startswith("nearest"):
            return self._upsampled(first, out, constant)
        if func in words.POOLS | words.MEANS and first is not None:
            return self._pooled(func, args, kwargs, out, constant)
        if (
            func in words.VIEWS
            and first is not None
            and words.keeps_order(func, args, kwargs)
            and out.numel() == math.prod(first.shape)
        ):
            return Signal(first.node, constant, first.shape, first.factor)
        self._refuse_function(func)

    def _refuse_function(self, func: Callable) -> NoReturn:
        name = words.name(func)
        self.refuse(f"{name} cannot be expressed in NIR: {words.REMEDIES.get(name, 'use a layer of docs/hardware.md')}")

    def _convolution(self, x: Signal, options: dict, constant: Tensor) -> Signal:
        if isinstance(options.get("padding"), str):
            self.refuse(f"padding={options['padding']!r}: give the padding as a number")
        stride, dilation = (words.pair(options.get(key, 1)) for key in ("stride", "dilation"))
        padding = words.pair(options.get("padding", 0))
        weight = dense(options["weight"].detach(), options.get("groups", 1))
        return self._convolved(x, Convolution(weight, stride, padding, dilation), constant)

    def _convolved(self, x: Signal, conv: Convolution, constant: Tensor, role: str = "", factor: int = 0) -> Signal:
        """factor: of the answer; 0: what suits its size."""
        shape = tuple(constant.shape[1:]) if constant.dim() == 4 else (constant.shape[1], 1, 1)
        factor = factor or self._factor(shape)
        if x.factor != 1 or factor != 1:
            square = conv.stride[0] == conv.stride[1] and conv.padding[0] == conv.padding[1] and shape[1] == shape[2]
            if not square or x.shape[1] != conv.stride[0] * shape[1] or conv.stride[0] * factor % x.factor:
                self.refuse(
                    f"{x.shape[1:]} to {shape[1:]} pixels, in a network that up-samples, cannot be expressed in NIR"
                )
        if conv.weight.shape[2] != conv.weight.shape[3]:
            self.refuse("its kernel is not square: NIR expects square kernels")
        try:
            conv = conv.regridded(x.factor, factor)
        except UserError as error:
            self.refuse(str(error))
        return Signal(self._convolve(role, x.shape, x.factor, conv, x.node), constant, shape, factor)

    def _convolve(self, role: str, shape: tuple[int, ...], factor: int, conv: Convolution, source: str) -> str:
        """The node. shape, factor: of its input."""
        try:
            check_size(conv.weight.numel())
        except UserError as error:
            self.refuse(str(error))
        return self.graph.convolve(f"{self.place}{role}", self._node_shape(shape, factor), conv, source)

    def _linear(self, x: Signal, weight: Tensor, constant: Tensor) -> Signal:
        if x.factor != 1 or weight.shape[1] != math.prod(x.shape):
            self.refuse("a linear layer reads one vector, of a network without up-sampling")
        return self._convolved(x, Convolution(weight.detach().unflatten(1, x.shape)), constant)

    def _batch_norm(self, value: Tensor, options: dict, constant: Tensor) -> Signal:
        if options.get("training"):
            self.refuse("a batch norm in training mode: call .eval() first")
        scale = (options["running_var"].flatten() + options.get("eps", 1e-5)).rsqrt()
        scale = scale if options.get("weight") is None else scale * options["weight"]
        return self._scaled(self.signals[value], scale.view(-1, 1, 1) if value.dim() == 4 else scale, constant, ".norm")

    def _scaled(self, x: Signal, scale: Tensor | float, constant: Tensor, role: str) -> Signal:
        """role: of the node; that of a norm may be folded."""
        scale = torch.as_tensor(scale, dtype=constant.dtype).detach()
        if math.prod(x.shape) != constant.numel():
            self.refuse("a product that broadcasts its input to a larger shape cannot be expressed in NIR")
        write = self.graph.norm if role == ".norm" else self.graph.scale
        node = write(f"{self.place}{role}", self.values(scale.expand(constant.shape), x), x.node)
        return Signal(node, constant, x.shape, x.factor)

    def _product(self, func: Callable, args: tuple, kwargs: dict, constant: Tensor) -> Signal:
        if func in words.SIGNS:
            return self._scaled(self.signals[args[0]], -1.0, constant, ".minus")
        first, second = (*args, *kwargs.values())[:2]
        signals = [self.signals.get(value) if isinstance(value, Tensor) else None for value in (first, second)]
        divides = func in (torch.div, Tensor.div, Tensor.__truediv__)
        signal, by = (signals[0], second) if signals[0] is not None else (signals[1], first)
        if signal is None or None not in signals or (divides and signal is signals[1]) or len(args) + len(kwargs) > 2:
            self.refuse(f"{words.name(func)} multiplies signals: {words.NO_PRODUCTS}")
        return self._scaled(signal, 1 / by if divides else by, constant, ".times")

    def _sum(self, func: Callable, args: tuple, constant: Tensor) -> Signal:
        signals = [self.signals.get(value) if isinstance(value, Tensor) else None for value in args]
        signs = [1.0, -1.0 if func in words.DIFFERENCES else 1.0]
        if func is Tensor.__rsub__:
            signs.reverse()
        terms = [(signal, sign) for signal, sign in zip(signals, signs, strict=True) if signal is not None]
        shape = self.images(constant)
        factor = self._factor(shape)
        nodes = [self._brought(signal, shape, factor, constant) for signal, _ in terms]
        if any(sign < 0 for _, sign in terms) or (len(nodes) == 2 and nodes[0] == nodes[1]):
            spread = np.ones(self._node_shape(shape, factor))
            nodes = [
                self.graph.scale(f"{self.place}.term", spread * sign, node)
                for node, (_, sign) in zip(nodes, terms, strict=True)
            ]
        if len(nodes) == 1:
            return Signal(nodes[0], constant, shape, factor)
        node = self.graph.scale(f"{self.place}.sum", np.ones(self._node_shape(shape, factor)), *nodes)
        return Signal(node, constant, shape, factor)

    def _brought(self, x: Signal, shape: tuple[int, ...], factor: int, like: Tensor) -> str:
        """The node that holds x as images of `shape` and `factor`: each pixel, or one copied to all places."""
        if x.shape == shape and x.factor == factor:
            return x.node
        channels = shape[0]
        identity = torch.eye(channels, dtype=like.dtype)[..., None, None]
        if x.shape == shape and factor % x.factor == 0:
            return self._convolved(x, Convolution(identity), like, ".copy", factor).node
        if x.shape != (channels, 1, 1) or shape[1] != shape[2]:
            self.refuse(f"adding {list(x.shape)} to {list(shape)} cannot be expressed in NIR")
        # One pixel in the middle of zeros, under a kernel that reaches it from everywhere.
        side = shape[1] // factor
        weight = identity.repeat_interleave(factor**2, 0).expand(-1, -1, side, side)
        return self._convolve(".everywhere", x.shape, 1, Convolution(weight, padding=(side - 1, side - 1)), x.node)

    def _joined(self, args: tuple, kwargs: dict, constant: Tensor) -> Signal:
        parts = args[0] if args else kwargs["tensors"]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if dim % constant.dim() != 1:
            self.refuse("concatenation along another axis than the channels cannot be expressed in NIR")
        shape, start = self.images(constant), 0
        nodes: list[str] = []
        for part in parts:
            width, signal = part.shape[1], self.signals.get(part)
            if signal is not None:
                place = torch.zeros(shape[0], width, 1, 1, dtype=constant.dtype)
                place[range(start, start + width), range(width)] = 1
                nodes.append(self._convolved(signal, Convolution(place), constant, f".part{len(nodes)}").node)
            start += width
        factor = self._factor(shape)
        node = self.graph.scale(f"{self.place}.joined", np.ones(self._node_shape(shape, factor)), *nodes)
        return Signal(node, constant, shape, factor)

    def _upsampled(self, x: Signal, out: Tensor, constant: Tensor) -> Signal:
        shape = self.images(out)
        times, remainder = divmod(shape[1], x.shape[1])
        if remainder or shape[2] != times * x.shape[2] or x.shape[1] != x.shape[2]:
            self.refuse("NIR can express up-sampling of square images by an integer factor alone")
        if not 0 < self.coarsest <= x.shape[1]:
            raise GridError(x.shape[1])
        factor = self._factor(x.shape)
        source = self._brought(x, x.shape, factor, constant)
        weight = doubled(shape[0], factor, times, constant)
        node = self._convolve(".copies", x.shape, factor, Convolution(weight), source)
        return Signal(node, constant, shape, factor * times)

    def _pooled(self, func: Callable, args: tuple, kwargs: dict, out: Tensor, constant: Tensor) -> Signal:
        x = self.signals[args[0]]
        is_global = self.images(out)[1:] == (1, 1) and x.shape[1] == x.shape[2] and out.numel() == x.shape[0]
        if func is F.avg_pool2d:
            options = words.bound(
                ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"), args, kwargs
            )
            kernel, padding = words.pair(options["kernel_size"]), words.pair(options.get("padding", 0))
            stride = words.pair(options.get("stride") or kernel)
            plain = not options.get("ceil_mode") and (padding == (0, 0) or options.get("count_include_pad", True))
        else:
            kernel, stride, padding, plain = (x.shape[1], x.shape[2]), (x.shape[1], x.shape[2]), (0, 0), is_global
        if not plain:
            self.refuse(f"{words.name(func)} in this form cannot be expressed in NIR: use plain average pooling")
        weight = torch.eye(x.shape[0], dtype=constant.dtype)[..., None, None].expand(-1, -1, *kernel) / math.prod(
            kernel
        )
        return self._convolved(x, Convolution(weight, stride, padding), constant)

    # ---- shapes ------------------------------------------------------------------------------------------------------

    def _factor(self, shape: tuple[int, ...]) -> int:
        """How many pixels of a line are channels in an image of this shape [C, H, W]."""
        side = shape[1]
        if not self.coarsest or side <= self.coarsest:
            return 1
        if side % self.coarsest or shape[1] != shape[2]:
            self.refuse(f"{shape[1]}×{shape[2]} pixels are no multiple of the {self.coarsest} that are up-sampled")
        return side // self.coarsest

    def images(self, value: Tensor) -> tuple[int, ...]:
        """[C, H, W] of the images that hold a value [1, C, H, W] or [1, F]; of a vector, one pixel."""
        if value.dim() not in (2, 4) or len(value) != 1:
            self.refuse(
                f"values of shape {list(value.shape)} are neither images nor vectors, and cannot be expressed in NIR"
            )
        return tuple(value.shape[1:]) if value.dim() == 4 else (value.shape[1], 1, 1)

    @staticmethod
    def _node_shape(shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
        """The shape of a node."""
        return shape[0] * factor**2, shape[1] // factor, shape[2] // factor

    def values(self, values: Tensor, x: Signal) -> np.ndarray:
        """values, or what is broadcast to x's, as the node has them."""
        spread = values.detach().double().expand(x.constant.shape).reshape(1, *x.shape)
        return np.ascontiguousarray(F.pixel_unshuffle(spread, x.factor)[0].numpy())

    def answer(self, value: object) -> Signal:
        """What the network answered. Raises UserError unless it is one tensor that depends on the input."""
        tensors = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
        signal = self.signals.get(tensors[0]) if len(tensors) == 1 else None
        if signal is None or signal.rectified:
            raise UserError(
                "the network's output is not a single tensor that depends on its input: it cannot be expressed in NIR"
            )
        return signal
