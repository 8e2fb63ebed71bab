"""What running a network over its time steps takes: carried levels, a lock, rows and averages of steps."""

from __future__ import annotations

import threading

from torch import Tensor
from torch.utils import _pytree as pytree

from ..ptq.calls import leaves


class Carried:
    """What is known of the calls while levels are carried. steps: of a carried call under `stream`."""

    def __init__(self, steps: int | str) -> None:
        self.steps = steps
        self.shapes: list | None = None  # of the tensors of the call before

    def goes_on(self, args: tuple, kwargs: dict) -> bool:
        """Whether a call can start from the levels of the one before."""
        return self.shapes is not None and self.shapes == _shapes(args, kwargs)

    def begun(self, args: tuple, kwargs: dict) -> None:
        self.shapes = _shapes(args, kwargs)


def form_of(args: tuple, kwargs: dict) -> tuple:
    """Which arguments of a call are given, and are tensors."""
    return (*kwargs, *(isinstance(value, Tensor) for value in leaves((args, kwargs))))


def _shapes(args: tuple, kwargs: dict) -> list:
    values = leaves((args, kwargs))
    return [(value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None for value in values]


class Lock:
    """A lock that copies and pickles of a network have of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict) -> Lock:
        return Lock()

    def __reduce__(self) -> tuple[type, tuple]:
        return Lock, ()


def repeated(value: Tensor, steps: int) -> Tensor:
    """A tensor's rows, for every one of `steps` time steps."""
    if steps == 1 or value.dim() == 0:
        return value
    return value.repeat(steps, *[1] * (value.dim() - 1))


def averaged(answer: object, before: object, window: int) -> object:
    """A step's answer in currents, added to what earlier steps make of the window's average."""
    shares, spec = pytree.tree_flatten(answer)
    shares = [value / window if isinstance(value, Tensor) else value for value in shares]
    if before is not None:
        earlier = pytree.tree_leaves(before)
        shares = [a + b if isinstance(a, Tensor) else a for a, b in zip(shares, earlier, strict=True)]
    return pytree.tree_unflatten(shares, spec)
