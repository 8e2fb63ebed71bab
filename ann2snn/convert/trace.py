"""What reads what: following levels, real values and weights through one pass of any network."""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import UserError
from ..kernels import upsample_nearest
from ..neurons import IFNeuron
from ..ptq.calls import leaves
from ..ptq.reach import Reach
from .other_quantizers import finds_its_range
from .quantizers import reader_of

#: Functions that move, copy or select values: levels stay levels.
COPIES = {
    upsample_nearest,
    *(F.dropout, F.dropout2d, F.pad, F.unfold, F.pixel_shuffle, F.pixel_unshuffle, F.interpolate),
    *(torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.flatten, torch.reshape, torch.permute),
    *(torch.transpose, torch.squeeze, torch.unsqueeze, torch.movedim, torch.select, torch.narrow, torch.unbind),
    *(torch.index_select, torch.roll, torch.flip, torch.clone, torch.swapaxes, torch.tile, torch.unflatten),
    *(Tensor.__setitem__, Tensor.copy_),  # into zeros, or what else does not depend on the call
    *(torch.broadcast_to, torch.repeat_interleave, torch.ravel, torch.detach),
    *(Tensor.chunk, Tensor.split, Tensor.flatten, Tensor.reshape, Tensor.permute, Tensor.transpose, Tensor.squeeze),
    *(Tensor.unsqueeze, Tensor.movedim, Tensor.select, Tensor.narrow, Tensor.unbind, Tensor.index_select),
    *(Tensor.view, Tensor.contiguous, Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.to, Tensor.float),
    *(Tensor.clone, Tensor.__getitem__, Tensor.unflatten, Tensor.view_as, Tensor.type_as, Tensor.swapaxes),
    *(Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.detach, Tensor.repeat_interleave, Tensor.roll),
    *(
        Tensor.mT.__get__,  # type: ignore[attr-defined]  # of the class it is a descriptor
        Tensor.T.__get__,  # type: ignore[attr-defined]
        Tensor.flip,
        Tensor.broadcast_to,
        Tensor.reshape_as,
        Tensor.swapdims,
        Tensor.ravel,
        Tensor.tile,
    ),
}
CONVOLUTIONS = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}
PRODUCTS = {torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, torch.einsum}
PRODUCTS |= {Tensor.__rmatmul__, torch.linalg.matmul, torch.mv, Tensor.mv, torch.inner, Tensor.inner, torch.dot}
ADDED_PRODUCTS = {torch.baddbmm, torch.addmm, torch.addmv, Tensor.baddbmm, Tensor.addmm, Tensor.addmv}
#: Multiply with weights where nothing is seen of it. Names, without underscores.
HIDDEN = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "bilinear"}
ATTENTION = {F.scaled_dot_product_attention}
#: Quantization by a function: no module that a neuron could replace.
FUNCTIONAL = {
    torch.fake_quantize_per_tensor_affine,
    torch.fake_quantize_per_channel_affine,
    torch._fake_quantize_learnable_per_tensor_affine,
    torch._fake_quantize_learnable_per_channel_affine,
    torch.fused_moving_avg_obs_fake_quant,
    torch.quantize_per_tensor,
    torch.quantize_per_channel,
}
#: Tensors of numbers that a call may hold.
FACTORIES = {torch.tensor, torch.as_tensor, torch.full, torch.full_like, torch.scalar_tensor, Tensor.new_tensor}
FACTORIES |= {Tensor.new_full, Tensor.fill_, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul}
COMMON_NUMBERS = {0, 1, 2}  # that come from elsewhere
REAL = ""  # what is no neuron's levels


def copies(func: Callable, kwargs: dict) -> bool:
    """Whether a function moves, copies or selects values."""
    return func in COPIES and not (func is F.interpolate and not kwargs.get("mode", "nearest").startswith("nearest"))


def factors(func: Callable, args: tuple, kwargs: dict) -> tuple:
    """The arguments of a product by position, named ones too, and without what it is added to."""
    given = (*args, *(value for name, value in kwargs.items() if name not in ("out", "alpha", "beta")))
    return given[1:3] if func in ADDED_PRODUCTS else given


@contextlib.contextmanager
def modules_watched(enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """Call enter(module, args) and leave(module, args, output) around every module that this thread runs.

    Of all modules in the process, so that those that are not registered in a network are seen as well.
    """
    thread = threading.get_ident()
    in_this_thread = lambda hook: lambda *call: hook(*call) if threading.get_ident() == thread else None  # noqa: E731
    handles = [
        nn.modules.module.register_module_forward_pre_hook(in_this_thread(enter)),
        nn.modules.module.register_module_forward_hook(in_this_thread(leave), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Synapses:
    """A linear map or a product, as it ran once.

    name: of the module; of an attention's products with ":query·key" or ":weights·value". reads: for each of its
    inputs that depends on the call, the neurons whose levels it reads, or `REAL` among them. macs: dense
    multiply-accumulates for the whole batch.
    """

    name: str
    reads: tuple[frozenset[str], ...]
    macs: int

    @property
    def spikes(self) -> bool:
        """Whether all that it reads are levels, so that events can be accumulated."""
        return bool(self.reads) and all(names and REAL not in names for names in self.reads)


@dataclass(frozen=True)
class Description:
    """What a converted network consists of.

    neurons: names of the neuron layers. synapses: linear maps and products in the order in which they ran. functional:
    modules that quantize by a function, which runs as real arithmetic. unread: neuron layers that were not called.
    others: functions without weights that read levels, and whose.
    """

    neurons: tuple[str, ...]
    synapses: tuple[Synapses, ...]
    functional: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    others: tuple[tuple[str, frozenset[str]], ...] = ()

    @property
    def reads_spikes(self) -> tuple[str, ...]:
        """Names of the linear maps and products that read spikes."""
        return tuple(dict.fromkeys(s.name for s in self.synapses if s.spikes))

    @property
    def reads_real(self) -> tuple[str, ...]:
        """Names of those that read real values, and of modules that quantize by a function."""
        return tuple(dict.fromkeys([s.name for s in self.synapses if not s.spikes] + list(self.functional)))

    @property
    def share(self) -> float:
        """Of all dense multiply-accumulates, the part that reads spikes; attention's products included."""
        total = sum(s.macs for s in self.synapses)
        return sum(s.macs for s in self.synapses if s.spikes) / total if total else 0.0

    def __str__(self) -> str:
        lines = [
            f"{len(self.neurons)} neuron layers; {self.share:.1%} of the multiply-accumulates read spikes",
            f"read spikes: {', '.join(self.reads_spikes) or 'none'}",
            f"read real values: {', '.join(self.reads_real) or 'none'}",
        ]
        return "\n".join(lines + ([f"not called: {', '.join(self.unread)}"] if self.unread else []))


@torch.no_grad()
def trace(net: nn.Module, args: tuple, kwargs: dict) -> Description:
    """Run `net`, whose quantizers are neurons, once, and see what reads what.

    Neurons whose input does not depend on the call, as a weight's, are marked as constant: they stay quantizers.
    Warns where a network quantizes by functions, or by modules that were not replaced.
    """
    follower = Follower(net, checks=True)
    with follower.attached(args, kwargs):
        answer = net(*args, **kwargs)
    for value in leaves(answer):
        if read := (follower.of(value) or frozenset()) - {REAL}:
            follower.others.append(("the network's answer", read))
    called = follower.called
    neurons = tuple(name for name, m in net.named_modules() if isinstance(m, IFNeuron) and not m.is_constant)
    unread = tuple(name for name in neurons if name not in called)
    if follower.functional:
        names = ", ".join(dict.fromkeys(follower.functional))
        warnings.warn(f"quantized where no neuron can stand, so real values run there: {names}", stacklevel=3)
    functional = tuple(dict.fromkeys(follower.functional))
    return Description(neurons, tuple(follower.synapses), functional, unread, tuple(follower.others))


@dataclass
class Follower(TorchFunctionMode):
    """Notes for every tensor whether it depends on the call and whose levels it holds, while it is attached.

    checks: hold what quantizers answer against their levels, and raise UserError where they differ.
    """

    net: nn.Module
    checks: bool = False
    synapses: list[Synapses] = field(default_factory=list)
    functional: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    others: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.modules = dict(self.net.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.inside: list[str] = []
        self.reach = Reach()  # all that depends on the call
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of it, what holds levels or passed by here
        self.numbers: set[float] = set()  # of the call
        self.in_neuron = 0
        self.moves = False  # whether what the neuron that runs is given depends on the call

    __hash__ = object.__hash__

    def of(self, value: object) -> frozenset[str] | None:
        """Whose levels a tensor holds ({`REAL`}: nobody's); None if it does not depend on the call."""
        if not isinstance(value, Tensor):
            return None
        return self.origins.get(value) or (frozenset([REAL]) if self.reach.has_marked(value) else None)

    @contextlib.contextmanager
    def attached(self, args: tuple, kwargs: dict) -> Iterator[None]:
        for value in tensors_and_numbers((args, kwargs)):
            if isinstance(value, Tensor):
                self._mark(value)
            elif value not in COMMON_NUMBERS:
                self.numbers.add(value)
        with modules_watched(self._enter, self._leave), self, self.reach:
            yield

    def _mark(self, value: Tensor, origin: frozenset[str] = frozenset([REAL])) -> None:
        self.reach.mark(value)
        self.origins[value] = origin

    def _enter(self, module: nn.Module, args: tuple) -> None:
        known = self.names.get(module)
        if known is None and not self.inside:
            return  # around the network
        name = self.inside[-1] if known is None and self.inside else known or ""
        self.inside.append(name)
        if isinstance(module, IFNeuron):
            self.in_neuron += 1
            self.moves = not args or self.of(args[0]) is not None
            # A module that quantizes weights and other values counts as a neuron: it comes to the same levels.
            module.is_constant = not self.moves and (name not in self.called or module.is_constant)
            self.called.add(name)
            self.reach.paused = True  # `_leave` marks what it answers
        elif not self.in_neuron and any(self.of(x) for x in leaves(args)) and _quantizes(module):
            label = f"a {type(module).__name__} that is not registered"
            self.functional.append(name if known is not None else f"{name} ({label})" if name else label)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if not self.inside:
            return
        name = self.inside.pop()
        if isinstance(module, IFNeuron):
            if self.checks and self.moves and isinstance(output, Tensor) and output.is_floating_point():
                self._check_reading(module, name, args[0], output)
            self.in_neuron -= 1
            self.reach.paused = self.in_neuron > 0
            if self.moves and isinstance(output, Tensor):
                self._mark(output, frozenset([name]))

    def _check_reading(self, neuron: IFNeuron, name: str, x: Tensor, answer: Tensor) -> None:
        if neuron.misreads(x, answer):
            raise UserError(
                f"{name or 'the network'} does not answer what is read from it as its levels: a "
                f"{type(neuron.quantizer).__name__} computes in its own way, so register it (register_quantizer)"
            )

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if self.in_neuron:
            return func(*args, **kwargs)  # how a neuron finds its level is its own affair
        origins = [self.of(value) for value in leaves((args, kwargs))]  # before anything is written to
        out = func(*args, **kwargs)
        known_origins = [origin for origin in origins if origin is not None]
        if func in FUNCTIONAL and known_origins:
            self.functional.append(self.inside[-1] if self.inside else "")
        if not known_origins and func in FACTORIES:
            if not self.numbers.isdisjoint(numbers_in((args[1:] or args, kwargs))):
                self.reach.mark(out)
        if func is Tensor.__setitem__:
            out = args[0]
        answers = [value for value in leaves(out) if isinstance(value, Tensor)]
        if known_origins and answers:
            copied = copies(func, kwargs)
            read = frozenset().union(*known_origins)
            if not self._note(func, args, kwargs, out) and not copied and read - {REAL}:
                self.others.append((getattr(func, "__name__", str(func)), read - {REAL}))
            for value in answers:
                origin = read if copied else frozenset([REAL])
                self.origins[value] = origin
                if value._base is not None and _writes(func, kwargs):  # all views of it have changed
                    self.origins[value._base] = origin | (self.origins.get(value._base) or frozenset())
        return None if func is Tensor.__setitem__ else out

    def _note(self, func: Callable, args: tuple, kwargs: dict, out: Any) -> bool:
        """Keep a linear map or product; whether it is one."""
        if func is F.multi_head_attention_forward:
            self._note_attention(args, kwargs)
        elif func is F.linear or func in CONVOLUTIONS:
            x, weight = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight")))
            over = x.numel() if "transpose" in getattr(func, "__name__", "") else out.numel()
            self._keep("", (x, weight), over * weight[0].numel())
        elif func in PRODUCTS:
            operands = [value for value in leaves(factors(func, args, kwargs)) if isinstance(value, Tensor)]
            self._keep("", operands, _product_macs(func, args, operands, out))
        elif func in ADDED_PRODUCTS:
            operands = list(factors(func, args, kwargs))
            self._keep("", operands, out.numel() * operands[0].shape[-1])
        elif getattr(func, "__name__", "").strip("_") in HIDDEN:
            weights = next((value for value in args if isinstance(value, list)), args[2:])  # behind input and state
            sizes = sum(value.numel() for value in weights if isinstance(value, Tensor) and value.dim() > 1)
            self._keep("", (frozenset([REAL]),), args[0].numel() // args[0].shape[-1] * sizes)
        elif func in ATTENTION:
            names = ("query", "key", "value")
            q, k, v = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(names))
            pairs = out.numel() // v.shape[-1] * k.shape[-2]
            self._keep(":query·key", (q, k), pairs * q.shape[-1])
            self._keep(":weights·value", (out, v), pairs * v.shape[-1], real_first=True)
        else:
            return False
        return True

    def _note_attention(self, args: tuple, kwargs: dict) -> None:
        """torch's attention with projections and all, whose parts do not show: what is within is real."""
        call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
        (queries, width), keys = call["query"].shape[-3::2], call["key"].shape[-3]
        rows = call["query"].shape[-2] if call["query"].dim() == 3 else 1  # sequences first: [L, N, E]
        if call["query"].dim() == 2:
            queries, keys = call["query"].shape[0], call["key"].shape[0]
        real = frozenset([REAL])
        for suffix, name, length in ((":query", "query", queries), (":key", "key", keys), (":value", "value", keys)):
            self._keep(suffix, (call[name],), rows * length * call[name].shape[-1] * width)
        for suffix in (":query·key", ":weights·value"):
            self._keep(suffix, (real, real), rows * queries * keys * width)
        self._keep(":output", (real,), rows * queries * width * width)

    def _keep(self, suffix: str, operands: tuple | list, macs: int, real_first: bool = False) -> None:
        reads = [value if isinstance(value, frozenset) else self.of(value) for value in operands]
        if real_first:
            reads[0] = frozenset([REAL])
        known = tuple(origin for origin in reads if origin is not None)
        if known:  # a product of weights alone happens once and for all
            self.synapses.append(Synapses(f"{self.inside[-1] if self.inside else ''}{suffix}", known, macs))


def tensors_and_numbers(call: object) -> Iterator[Tensor | float]:
    """The tensors of a call's arguments, whatever holds them, and its numbers."""
    for value in leaves(call):
        if isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield value


def numbers_in(values: object) -> set[float]:
    return {value for value in leaves(values) if isinstance(value, int | float) and not isinstance(value, bool)}


def _quantizes(module: nn.Module) -> bool:
    try:
        return finds_its_range(module) or reader_of(module) is not None
    except UserError:  # one that no neuron can replace
        return True


def _writes(func: Callable, kwargs: dict) -> bool:
    name = getattr(func, "__name__", "")
    return kwargs.get("out") is not None or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _product_macs(func: Callable, args: tuple, operands: list[Tensor], out: Tensor) -> int:
    if func is not torch.einsum or not isinstance(args[0], str) or "." in args[0]:
        return out.numel() * operands[0].shape[-1]
    sizes: dict[str, int] = {}
    for letters, operand in zip(args[0].replace(" ", "").split("->")[0].split(","), operands, strict=True):
        sizes |= dict(zip(letters, operand.shape, strict=True))
    total = 1
    for size in sizes.values():
        total *= size
    return total
