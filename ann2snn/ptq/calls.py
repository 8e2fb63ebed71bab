"""Calls of a network as data: what calibration is given, and copies that a forward pass may change."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..config import require
from ..errors import UserError

_Net = TypeVar("_Net", bound=nn.Module)

HOW = "give an iterable of calls: tuples of arguments, dicts of keyword arguments, or pairs (tuple, dict)"


class Call(NamedTuple):
    """Arguments of one call of a network."""

    args: tuple
    kwargs: dict

    def run(self, net: nn.Module) -> object:
        """What `net` answers to copies of the arguments: a forward pass may write into tensors and empty lists."""
        args, kwargs = fresh((self.args, self.kwargs))
        return net(*args, **kwargs)

    def stored(self) -> Call:
        """A copy on the CPU."""
        return map_tensors(self, lambda x: x.detach().to("cpu", copy=True))


def fresh(value: Any) -> Any:
    """A copy of arguments: what a forward pass changes or takes out of containers is there again the next time.

    A tensor that is given twice is one tensor in the copy, too.
    """
    clones: dict[int, Tensor] = {}

    def clone(x: Tensor) -> Tensor:
        if id(x) not in clones:
            clones[id(x)] = x.clone()
        return clones[id(x)]

    return map_tensors(value, clone)


def copied(net: _Net) -> _Net:
    """A copy of the network. Raises UserError where it has none.

    Tensors on a graph of autograd, as what `prune` or a hook computed in the last call, are copied without it.
    """
    attributes = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    known = {id(value): value.detach().clone() for value in attributes if not value.is_leaf}
    try:
        return copy.deepcopy(net, known)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"net cannot be copied, which keeps the original as it is: {error}") from error


def map_tensors(value: Any, change: Callable[[Tensor], object]) -> Any:
    """`value` with its tensors changed, in new tuples, lists, dicts and records; other objects are the same."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        make: Callable[..., tuple] = type(value)  # a named tuple takes its fields one by one
        return make(*(map_tensors(item, change) for item in value))
    if type(value) is tuple:
        return tuple(map_tensors(item, change) for item in value)
    if is_record(value):
        changed = copy.copy(value)
        for name, held in _fields(value).items():  # frozen ones can be changed in no other way
            object.__setattr__(changed, name, map_tensors(held, change))
        return changed
    if type(value) is list:
        return [map_tensors(item, change) for item in value]
    if type(value) is dict:
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (list, dict)):
        changed = copy.copy(value)  # of the same class, which may be the caller's own
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            changed[key] = map_tensors(item, change)
        return changed
    return value


def is_record(value: object) -> bool:
    """Whether it is a dataclass' instance, and no dict as well as diffusers' answers are, or another bundle of values.

    A `UserDict` is what transformers' tokenizers answer.
    """
    if isinstance(value, (SimpleNamespace, UserDict)):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, dict))


def _fields(record: Any) -> dict[str, object]:
    if not dataclasses.is_dataclass(record):
        return dict(vars(record))
    names = [field.name for field in dataclasses.fields(record)]
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def leaves(value: object) -> list:
    """What `value` consists of: what its tuples, lists, dicts and records hold."""
    parts = []
    for leaf in pytree.tree_leaves(value):
        if is_record(leaf):
            parts += leaves(list(_fields(leaf).values()))
        else:
            parts.append(leaf)
    return parts


def read_calls(given: Iterable, name: str = "calibrate") -> list[Call]:
    """`given` as calls; a tensor among them is a call's only argument. name: of the argument, for messages.

    Raises UserError for what is no iterable of calls, and for none.
    """
    once = isinstance(given, (Tensor, dict, str, bytes)) or not isinstance(given, Iterable)
    require(not once, f"{name} is a {type(given).__name__}: {HOW}, as in {name}=[(x, t)]")
    calls = [_read_call(call, name) for call in given]
    require(bool(calls), f"{name} has no call: {HOW}")
    return calls


def _read_call(call: object, name: str) -> Call:
    if isinstance(call, Tensor):
        return Call((call,), {})
    if isinstance(call, dict):
        return Call((), dict(call))
    if isinstance(call, tuple):
        if len(call) == 2 and isinstance(call[0], tuple) and isinstance(call[1], dict):
            return Call(*call)
        return Call(tuple(call), {})
    raise UserError(f"a call of {name} is a {type(call).__name__}: {HOW}")
