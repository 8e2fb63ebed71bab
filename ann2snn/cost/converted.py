"""Counting a converted network of any architecture: events, and whatever they make a device compute again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..convert.trace import ADDED_PRODUCTS, ATTENTION, CONVOLUTIONS, HIDDEN, PRODUCTS, factors
from ..errors import UserError
from ..neurons import Clock, IFNeuron
from .events import EventFollower, Read
from .layers import LEVELS, MIXED, REAL, SPIKES, SYNAPTIC, LayerCost
from .synapses import LinearMap, effective_operations, fan_out

DIFFERENCES = "differences"  # beside SPIKES and LEVELS: what an `EventCounter` counts

#: Multiply-accumulates of a norm per value: into the sum, into the sum of squares, and the affine map. What a norm
#: computes once per group is left out.
NORM_MACS = 3
#: Per value of what is computed; reads and writes of values.
PER_VALUE = {
    "norm": {"mac": NORM_MACS, "values": 2},
    "affine": {"mac": 1, "values": 2},
    "softmax": {"updates": 1, "additions": 1, "mac": 1, "values": 2},
    "sum": {"additions": 1, "values": 3},
    "scale": {"mac": 1, "values": 2},
    "activation": {"updates": 1, "values": 2},
}
#: Names of torch's functions, without underscores, by kind.
KINDS = {
    **dict.fromkeys(("group_norm", "layer_norm", "instance_norm", "rms_norm"), "norm"),
    "batch_norm": "affine",
    "batch_norm_of_rows": "affine",
    "softmax": "softmax",
    **dict.fromkeys(("add", "radd", "iadd", "sub", "rsub", "isub", "sum", "mean", "cumsum"), "sum"),
    **dict.fromkeys(
        ("mul", "rmul", "imul", "div", "rdiv", "truediv", "rtruediv", "itruediv", "multiply", "outer", "ger"), "scale"
    ),
}
#: Looked into by nobody: what they multiply inside would go uncounted.
CLOSED = (
    "multi_head_attention_forward", "native_multi_head_attention", "transformer_encoder_layer_fwd",
    "tensordot", "addbmm", "chain_matmul", "linalg_multi_dot", "cdist", "embedding_bag", "conv_tbc", *HIDDEN,
)  # fmt: skip
#: Make new tensors, or only look at old ones.
FREE = ("get", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "type", "setitem")
#: A change of one value changes all of its group behind these.
GROUPING = ("norm", "softmax", "product")


@dataclass
class Row:
    """Sums of one kind of work in one module. fixed: what is the same in every call, by key and field."""

    name: str
    kind: str
    inputs: str = ""
    weight_bits: int = 32
    weights: int = 0
    sums: Counter = field(default_factory=Counter)
    fixed: dict[tuple, float] = field(default_factory=dict)

    def add(self, **amounts: float) -> None:
        self.sums.update(amounts)

    def fix(self, key: tuple, **amounts: float) -> None:
        self.fixed |= {(key, name): amount for name, amount in amounts.items()}

    def take(self, images: int, parameters: list[int]) -> LayerCost:
        """What came since the last time, per image. parameters: sizes of its own."""
        totals: defaultdict[str, Any] = defaultdict(float, {name: n / images for name, n in self.sums.items()})
        for (_, name), amount in self.fixed.items():
            totals[name] += amount
        self.sums.clear()
        totals["parameters"] = sum(parameters)
        totals["parameter_bits"] = sum(n * (self.weight_bits if n == self.weights else 32) for n in parameters)
        return LayerCost(self.name, self.kind, self.inputs, weight_bits=self.weight_bits, **totals)


class EventCounter(EventFollower):
    """Counts what a network of neurons does.

    counts: SPIKES, of a spiking network. LEVELS: of the ANN it is under layer_sync, all of which runs in every call.
    DIFFERENCES: of that ANN, where it keeps what it computed and multiplies the differences of levels.
    """

    def __init__(self, net: nn.Module, clock: Clock, counts: str) -> None:
        super().__init__(net, clock)
        self.counts = counts
        self.keeps = counts != LEVELS
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.fired: dict[tuple, Tensor] = {}  # neurons that sent an event so far
        self.fan_outs: dict[tuple, tuple[Tensor, float]] = {}

    def begin(self, images: int, rests: bool, anew: bool) -> None:
        """Before a call. rests: from rest; anew: neurons that fired before count as touched again."""
        self.images = images
        if rests:
            self.before.clear()
        if anew:
            self.fired.clear()

    def take(self, images: int) -> dict[str, LayerCost]:
        """What came since the last time, per image, by layer in data-flow order."""
        owned = self._parameters()
        return {row.name: row.take(images, owned[row.name]) for row in self.rows.values()}

    def _parameters(self) -> dict[str, list[int]]:
        """Of each layer, sizes of its parameters; each goes to the layer with the longest name that fits."""
        owned: dict[str, list[int]] = {row.name: [] for row in self.rows.values()}
        for name, parameter in self.net.named_parameters():
            owners = [owner for owner in owned if name.startswith(f"{owner}.")]
            owned[max(owners, key=len, default=next(iter(owned)))].append(parameter.numel())
        return owned

    def turn(self, kind: str, suffix: str = "") -> tuple[str, str, int]:
        """A key that tells the n-th work of this kind in this module and pass."""
        place = (self.inside[-1] if self.inside else "readout") + suffix, kind
        self.turns[place] += 1
        return (*place, self.turns[place])

    def row(self, key: tuple[str, str, int], inputs: str = "") -> Row:
        """Where such work is summed; apart by what it reads."""
        place, kind, _ = key
        if (place, kind, inputs) not in self.rows:
            module, used = self.modules.get(place), {row.name for row in self.rows.values()}
            has_parts = module is not None and next(module.children(), None) is not None
            long = f"{place}.{kind}".lstrip(".")
            names = [long] if has_parts and kind not in (*SYNAPTIC, "neuron") else [place or long, long]
            names.append(f"{long} ({inputs})")
            self.rows[place, kind, inputs] = Row(next(name for name in names if name not in used), kind, inputs)
        return self.rows[place, kind, inputs]

    def count(self, func: Callable, args: tuple, kwargs: dict, operands: list[Tensor], out: Tensor, group: str) -> str:
        name = getattr(func, "__name__", "").strip("_")
        if name in CLOSED:
            raise UserError(f"cannot count the operations inside {name}: use separate layers, whose products are seen")
        if func is F.linear or func in CONVOLUTIONS:
            return self._layer(func, args, kwargs, out, group)
        if func in PRODUCTS or func in ADDED_PRODUCTS:
            return self._multiplied(func, factors(func, args, kwargs), out, group)
        if func in ATTENTION:
            return self._attention(args, kwargs, out)
        kind = KINDS.get(name, "activation")
        if name not in FREE:
            self._real(kind, operands, out, groups=_groups(name, operands[0], args, kwargs) if kind == "norm" else 0)
        return kind if kind in GROUPING else group

    def count_neuron(self, x: Tensor, events: Tensor) -> None:
        key, group = self.turn("neuron"), self.grouped.get(x, "")
        row, sent = self.row(key, group), self.by_image(events) > 0
        looks = self.changes(x, key)
        if group:
            looks = looks.any(1, keepdim=True).expand_as(looks)
        ramp = self._ramp(key).to(x.device).repeat_interleave(len(looks) // self.clock.chunk_steps)
        updates = float((looks | ramp[:, None] | sent).sum() if self.keeps else sent.numel())
        row.fix(key, neurons=sent.shape[1], state_words=sent.shape[1] if self.keeps else 0)
        row.add(updates=updates, values=updates, activations=updates, touched=self._first_events(sent, key))
        if self.keeps:
            row.add(states=updates + float(sent.sum()))
        if self.counts == SPIKES:
            row.add(spikes=float(events.sum(dtype=torch.float64)))

    def _first_events(self, sent: Tensor, key: tuple) -> float:
        """How many neurons sent an event for the first time. sent, bool, as `by_image`."""
        fired = sent.reshape(self.clock.chunk_steps, -1).any(0)
        earlier = self.fired.get(key, torch.zeros_like(fired))
        self.fired[key] = fired | earlier
        return float((fired & ~earlier).sum())

    def _ramp(self, key: tuple) -> Tensor:
        """In which of this chunk's steps targets move because more of the window has passed [L], bool."""
        shares = torch.tensor([pace.share for pace in self.clock.paces()], dtype=torch.float64)
        last = self.before.get((key, "share"), torch.zeros(1, dtype=torch.float64))
        self.before[key, "share"] = shares[-1:]
        return shares != torch.cat([last, shares[:-1]])

    # ---- linear maps and products ------------------------------------------------------------------------------------

    def _layer(self, func: Callable, args: tuple, kwargs: dict, out: Tensor, group: str) -> str:
        x, weight = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight")))
        options = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}

        def apply(x: Tensor, weight: Tensor) -> Tensor:
            return func(x, weight, None, *args[3:], **options)

        if self.of(weight) is not None:
            return self._product(x, weight, apply, out)
        kind = "linear" if func is F.linear else "conv"
        if x.dim() < (weight.dim() if kind == "conv" else 2):
            x = self.moved(x, torch.unsqueeze, 0)  # no batch
        return self._linear(kind, x, weight, apply, out, group)

    def _multiplied(self, func: Callable, args: tuple, out: Tensor, group: str) -> str:
        """A matrix product, of which one operand may be a weight."""
        func = torch.matmul if func in ADDED_PRODUCTS else func
        tensors = [value for value in pytree.tree_leaves(args) if isinstance(value, Tensor)]

        def apply(*values: Tensor) -> Tensor:
            operands = iter(values)
            return func(*pytree.tree_map(lambda value: next(operands) if isinstance(value, Tensor) else value, args))

        depends = [self.of(value) is not None for value in tensors]
        if len(tensors) != 2 or not any(depends):
            raise UserError(f"cannot count the operations of a product of {len(tensors)} tensors")
        a, b = tensors
        if all(depends):
            return self._product(a, b, apply, out)
        if depends[0]:
            return self._linear("linear", a, b, apply, out, group)
        return self._linear("linear", b, a, lambda x, weight: apply(weight, x), out, group)

    def _attention(self, args: tuple, kwargs: dict, out: Tensor) -> str:
        names = ("query", "key", "value")
        q, k, v = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(names))
        if k.dim() > 3 and k.shape[-3] != q.shape[-3]:  # groups of queries share keys and values
            share = q.shape[-3] // k.shape[-3]
            k, v = (self.moved(value, torch.repeat_interleave, share, -3) for value in (k, v))
        k = self.moved(k, torch.transpose, -2, -1)
        scores = torch.matmul(q, k)
        self._product(q, k, torch.matmul, scores, ":query·key")
        self._real("softmax", [scores], scores, ":softmax")
        return self._product(torch.softmax(scores, -1), v, torch.matmul, out, ":weights·value")

    def _linear(self, kind: str, x: Tensor, weight: Tensor, apply: LinearMap, out: Tensor, group: str) -> str:
        """A linear map with weights that do not depend on the call."""
        key = self.turn(kind)
        if (key, x.shape[1:]) not in self.fan_outs:
            self.fan_outs[key, x.shape[1:]] = fan_out(apply, weight, x.shape[1:])
        (reach, dense), read, lines = self.fan_outs[key, x.shape[1:]], self.read(x, key), self.lines(x)
        row = self.row(key, self._carried(read))
        if read.events is not None:
            reached = [effective_operations(times, reach) for times in (read.events, read.events != 0)]
            self._accumulate(row, *reached)
        if read.real is not None:
            times = (self.by_image(read.real != 0) & read.again[:, None]).view_as(x)
            macs = effective_operations(times, reach)
            row.add(mac=macs, weight_fetches=macs, values=float(read.again.sum()) * read.share * x.numel() / lines)
        row.weights, row.weight_bits = weight.numel(), self._weight_bits()
        runs = self._ran(row, key, read.changed, dense * len(x) / lines, out)
        row.add(weight_reads=runs * weight.numel(), activations=runs * (1 - read.share) * x.numel() / lines)
        return "" if read.real is None else group

    def _product(self, a: Tensor, b: Tensor, multiply: LinearMap, out: Tensor, suffix: str = "") -> str:
        """Two tensors that depend on the call: Δ(a·b) = Δa·b + (a + Δa)·Δb where both hold levels."""
        key = self.turn("product", suffix)
        reads = [self.read(x, (key, letter)) for letter, x in (("a", a), ("b", b))]
        changed, lines = reads[0].changed | reads[1].changed, self.lines(out)
        changed = changed if len(changed) == lines else changed.any().expand(lines)
        row, nonzero = self.row(key, self._carried(*reads)), [(x != 0).double() for x in (a, b)]
        if all(read.real is None for read in reads):
            old = (self.step_before(b, (key, "old"), 0.0).view_as(b) != 0).double()
            spikes = [read.events.double() for read in reads if read.events is not None]  # what is not real
            units = [(events != 0).double() for events in spikes]
            synapses = [multiply(of_a, old).sum() + multiply(nonzero[0], of_b).sum() for of_a, of_b in (spikes, units)]
            self._accumulate(row, *map(float, synapses))
            row.weight_bits = math.ceil(math.log2(self.clock.spike_steps + 1))
        else:
            row.add(mac=float(self.by_image(multiply(*nonzero))[changed].sum()))
        dense = float(multiply(*map(torch.ones_like, nonzero)).sum()) / lines
        runs = self._ran(row, key, changed, dense, out)
        for x, read in zip((a, b), reads, strict=True):
            row.add(**{"activations" if read.real is None else "values": runs * x.numel() / lines})
        return "product"

    def _accumulate(self, row: Row, spikes: float, events: float) -> None:
        """Synapses that read levels. spikes: Σ|event| over them; events: how many an event reached."""
        row.add(**{"ac": spikes} if self.counts == SPIKES else {"mac": events}, weight_fetches=events)

    def _carried(self, *reads: Read) -> str:
        """What a linear map, or a product of two, reads."""
        if all(read.real is None for read in reads):
            return SPIKES if self.counts == SPIKES else LEVELS
        return MIXED if len(reads) == 1 and reads[0].share < 1 else REAL

    def _ran(self, row: Row, key: tuple, changed: Tensor, synapses: float, out: Tensor) -> float:
        """Linear maps and products, with `synapses` each run → runs, steps × images with something to do."""
        runs, values = float(changed.sum() if self.keeps else changed.numel()), out.numel() / self.lines(out)
        row.fix(key, synapses=synapses, state_words=values if self.keeps else 0)
        row.add(dense=runs * synapses)
        row.add(**{"states": 2 * runs * values} if self.keeps and row.inputs != REAL else {"values": runs * values})
        return runs

    def _weight_bits(self) -> int:
        """Of the weights of the layer that runs."""
        module = self.modules[self.inside[-1]] if self.inside else self.net
        quantizers = [m.levels for m in module.modules() if isinstance(m, IFNeuron) and m.is_constant]
        widths = [math.ceil(math.log2(levels.hi - levels.lo + 1)) for levels in quantizers]
        return widths[0] if widths else int(getattr(module, "bits", 32))

    # ---- real arithmetic ---------------------------------------------------------------------------------------------

    def _real(self, kind: str, operands: list[Tensor], out: Tensor, suffix: str = "", groups: int = 0) -> None:
        """A function of real values. groups: of a norm, in all rows."""
        key = self.turn(kind, suffix)
        row, by_row = self.row(key), kind in GROUPING or not all(_broadcasts(x.shape, out.shape) for x in operands)
        changed = torch.zeros((), dtype=torch.bool, device=out.device)
        for index, x in enumerate(operands):
            mask = self.changes(x, (key, index))
            changed = changed | (mask.any(1) if by_row else mask.view_as(x))
        share, most = float(changed.double().mean()), max(x.numel() for x in (out, *operands))
        row.add(**{name: amount * share * most for name, amount in PER_VALUE[kind].items()})
        if self.keeps:  # a norm two sums a group, a sum itself
            words = 2 * groups + (out.numel() if kind == "sum" else 0)
            row.fix(key, state_words=words / self.lines(out))
            row.add(states=4 * groups * share)


def _groups(name: str, x: Tensor, args: tuple, kwargs: dict) -> int:
    """Groups that a norm takes statistics over, of all rows."""
    setting = args[1] if len(args) > 1 else kwargs.get("num_groups", kwargs.get("normalized_shape", 1))
    if name == "group_norm":
        return len(x) * setting
    return x.numel() // math.prod(setting if isinstance(setting, tuple | list | torch.Size) else x.shape[2:])


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)
