"""Which modules of a network run in a call, and to which of them another layer's output has come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..config import require
from ..quant.place import first_argument
from .calls import leaves

#: What is quantized in front of, transposed convolutions included.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class Site:
    """Place of a quantizer: in front of a layer, or (`behind`) after a module that answers a factor of attention."""

    name: str
    module: nn.Module
    behind: bool = False
    called: bool = False
    reached: bool = False  # a layer's output has come here
    shape: tuple[int, ...] = ()  # of the tensor to quantize
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    def see(self, x: Tensor, reached: bool) -> None:
        """Take note of a tensor. Raises UserError for values that are not finite."""
        check_finite(x, self.name)
        self.called, self.reached = True, self.reached or reached
        self.shape, self.dtype, self.device = tuple(x.shape), x.dtype, x.device


def check_finite(x: Tensor, name: str) -> None:
    """Raise UserError if x, which comes to the module `name` in calibration, has NaN or infinity."""
    finite = not x.is_floating_point() or bool(x.isfinite().all())
    require(finite, f"calibration: {name} is given values that are not finite: check the calls and the weights")


_MARK = "reached_by_a_layer"
#: Take a tensor's shape and type, and nothing of its values; what `empty_like` makes may be filled by foreign kernels.
_SHAPE_ALONE = {
    getattr(torch.ops.aten, name)
    for name in ("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full")
}


def _storage(x: Tensor) -> object:
    return x.untyped_storage() if x.layout == torch.strided else x  # sparse tensors have none


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in `value`. Every operation asks for those of its arguments, so their plain cases come first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif value is not None and not isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        yield from (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


class Reach(TorchDispatchMode):
    """While it is on, everything computed from what `mark` marked is marked too: views and writes in place included.

    The mark sits on the storage, so that all views of a tensor share it; python keeps such an attribute as long as
    the storage lives, and other marks than one's own count for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own = object()
        self.paused = False  # while it is, what is computed keeps the marks that it has

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if self.paused:
            return answer
        if func.overloadpacket not in _SHAPE_ALONE and (self.has_marked(args) or self.has_marked(kwargs)):
            self.mark(answer)
            for position, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.mark(args[position] if position < len(args) else kwargs.get(argument.name))
        return answer

    def mark(self, value: object) -> None:
        """Mark all tensors in `value`: a tensor, or tuples, lists and dicts of them."""
        for x in _tensors(value):
            setattr(_storage(x), _MARK, self.own)

    def has_marked(self, value: object) -> bool:
        """Whether a tensor in `value` is marked."""
        return any(getattr(_storage(x), _MARK, None) is self.own for x in _tensors(value))


@contextmanager
def noting(net: nn.Module, sites: list[Site]) -> Iterator[None]:
    """While it is open, calls of `net` fill in the sites; what any layer of `net` answers counts as its output."""
    hooks = []
    with Reach() as reach:

        def before(site: Site):
            name = first_argument(site.module)

            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                x = args[0] if args else kwargs[name]
                site.see(x, reach.has_marked(x))

            return hook

        def after(site: Site):
            return lambda module, args, output: site.see(output, True)

        for site in sites:
            if site.behind:
                hooks.append(site.module.register_forward_hook(after(site)))
            else:
                hooks.append(site.module.register_forward_pre_hook(before(site), with_kwargs=True))
        for module in net.modules():
            if isinstance(module, LAYERS):
                hooks.append(module.register_forward_hook(lambda module, args, output: reach.mark(output)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
