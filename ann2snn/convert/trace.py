"""What reads what: following levels, real values and weights through one pass of any network."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from ..kernels import upsample_nearest
from ..neurons import IFNeuron
from .quantizers import reader_of

#: Functions that move, copy or select values: levels stay levels.
COPIES = {
    upsample_nearest,
    *(F.dropout, F.dropout2d, F.pad, F.unfold, F.pixel_shuffle, F.pixel_unshuffle, F.interpolate),
    *(torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.flatten, torch.reshape, torch.permute),
    *(torch.transpose, torch.squeeze, torch.unsqueeze, torch.movedim, torch.select, torch.narrow, torch.unbind),
    *(torch.index_select, torch.roll, torch.flip, torch.clone, torch.swapaxes, torch.tile, torch.unflatten),
    *(torch.broadcast_to, torch.repeat_interleave, torch.ravel, torch.detach),
    *(Tensor.chunk, Tensor.split, Tensor.flatten, Tensor.reshape, Tensor.permute, Tensor.transpose, Tensor.squeeze),
    *(Tensor.unsqueeze, Tensor.movedim, Tensor.select, Tensor.narrow, Tensor.unbind, Tensor.index_select),
    *(Tensor.view, Tensor.contiguous, Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.to, Tensor.float),
    *(Tensor.clone, Tensor.__getitem__, Tensor.unflatten, Tensor.view_as, Tensor.type_as, Tensor.swapaxes),
    *(Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.detach, Tensor.repeat_interleave, Tensor.roll),
    *(
        Tensor.mT.__get__,
        Tensor.T.__get__,
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
ADDED_PRODUCTS = {torch.baddbmm, torch.addmm, Tensor.baddbmm, Tensor.addmm}
ATTENTION = {F.scaled_dot_product_attention}
#: Quantization by a function: no module that a neuron could replace.
FUNCTIONAL = {
    torch.fake_quantize_per_tensor_affine,
    torch.fake_quantize_per_channel_affine,
    torch.quantize_per_tensor,
    torch.quantize_per_channel,
}
REAL = ""  # what is no neuron's levels


def copies(func: Callable, kwargs: dict) -> bool:
    """Whether a function moves, copies or selects values."""
    return func in COPIES and not (func is F.interpolate and kwargs.get("mode", "nearest") != "nearest")


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
    follower = Follower(net)
    with follower.attached(args, kwargs):
        net(*args, **kwargs)
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

    on_synapses(entry, inputs): called for every linear map and product, after it ran.
    """

    net: nn.Module
    synapses: list[Synapses] = field(default_factory=list)
    functional: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    others: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.modules = dict(self.net.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.inside: list[str] = []
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor that depends on the call → whose levels

    __hash__ = object.__hash__

    def of(self, value: object) -> frozenset[str] | None:
        """Whose levels a tensor holds ({`REAL`}: nobody's); None if it does not depend on the call."""
        return self.origins.get(value) if isinstance(value, Tensor) else None

    @property
    def in_neuron(self) -> bool:
        return bool(self.inside) and isinstance(self.modules[self.inside[-1]], IFNeuron)

    @contextlib.contextmanager
    def attached(self, args: tuple, kwargs: dict) -> Iterator[None]:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.origins[value] = frozenset([REAL])
        handles = []
        for module in self.net.modules():
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple) -> None:
        name = self.names[module]
        self.inside.append(name)
        if isinstance(module, IFNeuron):
            self.called.add(name)
            module.is_constant = bool(args) and self.of(args[0]) is None
        elif reader_of(module) is not None and not isinstance(module, IFNeuron):
            self.functional.append(name)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        self.inside.pop()
        if isinstance(module, IFNeuron) and not module.is_constant and isinstance(output, Tensor):
            self.origins[output] = frozenset([self.names[module]])

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if self.in_neuron:
            return func(*args, **kwargs)  # how a neuron finds its level is its own affair
        out = func(*args, **kwargs)
        origins = [self.of(value) for value in pytree.tree_leaves((args, kwargs))]
        found = [origin for origin in origins if origin is not None]
        if func in FUNCTIONAL and found:
            self.functional.append(self.inside[-1] if self.inside else "")
        answers = [value for value in pytree.tree_leaves(out) if isinstance(value, Tensor)]
        if found and answers:
            copied = copies(func, kwargs)
            read = frozenset().union(*found)
            if not self._note(func, args, kwargs, out) and not copied and read - {REAL}:
                self.others.append((getattr(func, "__name__", str(func)), read - {REAL}))
            for value in answers:
                self.origins[value] = read if copied else frozenset([REAL])
        return out

    def _note(self, func: Callable, args: tuple, kwargs: dict, out: object) -> bool:
        """Keep a linear map or product; whether it is one."""
        if func is F.linear or func in CONVOLUTIONS:
            x, weight = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight")))
            over = x.numel() if "transpose" in getattr(func, "__name__", "") else out.numel()
            self._keep("", (x, weight), over * weight[0].numel())
        elif func in PRODUCTS:
            operands = [value for value in pytree.tree_leaves(args) if isinstance(value, Tensor)]
            self._keep("", operands, _product_macs(func, args, operands, out))
        elif func in ADDED_PRODUCTS:
            self._keep("", args[1:3], out.numel() * args[1].shape[-1])
        elif func in ATTENTION:
            names = ("query", "key", "value")
            q, k, v = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(names))
            pairs = out.numel() // v.shape[-1] * k.shape[-2]
            self._keep(":query·key", (q, k), pairs * q.shape[-1])
            self._keep(":weights·value", (out, v), pairs * v.shape[-1], real_first=True)
        else:
            return False
        return True

    def _keep(self, suffix: str, operands: tuple | list, macs: int, real_first: bool = False) -> None:
        reads = [self.of(value) for value in operands]
        if real_first:
            reads[0] = frozenset([REAL])
        reads = tuple(origin for origin in reads if origin is not None)
        if reads:  # a product of weights alone happens once and for all
            self.synapses.append(Synapses(f"{self.inside[-1] if self.inside else ''}{suffix}", reads, macs))


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
