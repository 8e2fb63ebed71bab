"""The processes that compute one run together: who does what, and how they agree (PyTorch's distributed engine).

Small things (flags, counts, statistics, images) travel over gloo on the CPU; gradients over NCCL where they are on a
GPU. A process that is alone needs none of it: every method then does nothing, at no cost.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UserError
from .gpus import check_alone_on, own_gpu, patience
from .lifelines import POLL_SECONDS, Lifelines, accept, connect
from .meeting import PATIENCE, check_environment, launched, meet
from .runtime import choose_device

Items = TypeVar("Items", Tensor, Sequence)


class World:
    """One process of `size`, number `rank`, on `device`. `main` is the one that writes what is shared.

    All methods but `share` are collective: every process must call them, in the same order.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1, store: dist.Store | None = None) -> None:
        self.device, self.rank, self.size = device, rank, size
        self.store = dist.HashStore() if store is None else store  # where processes leave word for each other
        self.lifelines = Lifelines({})
        self.group: dist.ProcessGroup | None = None  # for what travels on the CPU; None: torch's default group
        self._names = itertools.count()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Items) -> Items:
        """This process's part of `items`: every `size`-th, from `rank` on."""
        return items[self.rank :: self.size]

    def rows(self, total: int, flag: str) -> slice:
        """This process's consecutive part of a batch of `total` rows. Raises UserError where it cannot be even."""
        if total % self.size:
            raise UserError(f"{flag}={total}: must be a multiple of the {self.size} processes that share a batch")
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            name = self._name("wait")
            self.store.add(name, 1)
            self._until(name, self.size)

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return int(value)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all processes, in float64 on the CPU; bit for bit the same on each."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes, in one transfer."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def synchronise(self, net: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.size > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)

    def from_main(self, text: str) -> str:
        """The main process's text, on all."""
        if self.size == 1:
            return text
        name = self._name("text")
        if self.main:
            self.store.set(name, text)
        while not self.store.check([name]):
            self._pause()
        return self.store.get(name).decode()

    def collect(self, rows: Tensor) -> list[Tensor]:
        """Every process's tensor [n, *shape], n being its own, in order of rank, on the CPU."""
        if self.size == 1:
            return [rows.cpu()]
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts, group=self.group)
        padded = rows.new_zeros(int(counts.max()), *rows.shape[1:], device="cpu")
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self.group)
        return [part[:count] for part, count in zip(gathered, counts.tolist(), strict=True)]

    @contextlib.contextmanager
    def progress(self, total: int, desc: str, unit: str, show: bool = True) -> Iterator[Progress]:
        """One bar for the work of all processes, which the main one draws on a terminal, until `total` is reached."""
        name = self._name("bar") if self.size > 1 else ""
        with tqdm(total=total, desc=desc, unit=unit, leave=False, disable=None if show and self.main else True) as bar:
            progress = Progress(self, bar, name)
            yield progress
            if self.size > 1:
                self._until(name, total, progress.show)

    def claim(self, name: str) -> bool:
        """Whether this process is the first of all to ask. Not collective."""
        return self.size == 1 or self.store.add(f"claim/{name}", 1) == 1

    def tie(self) -> None:
        """Connect the main process with each other one, see `Lifelines`, and wait until all are there.

        A network that lets no such connection through is no error: the launcher then ends those that wait in vain.
        """
        if self.main:
            with socket.create_server(("", 0), backlog=self.size) as listener:
                word = secrets.token_hex(8)  # whoever else connects to the port does not know it
                self.from_main(f"{listener.getsockname()[1]} {word}")
                ends = accept(listener, word, self.size - 1, self.store)
        else:
            port, word = self.from_main("").split()
            ends = connect(int(port), word, self.rank, self.store)
        self.lifelines = Lifelines(ends)
        self.wait()

    def _until(self, name: str, count: int, on_wait=lambda number: None) -> None:
        while (number := self.store.add(name, 0)) < count:
            on_wait(number)
            self._pause()

    def _pause(self) -> None:
        """Between two looks at the store, which let signals in, as one blocking call would not."""
        self.lifelines.check()
        time.sleep(POLL_SECONDS)

    def _name(self, kind: str) -> str:
        return f"{kind}/{next(self._names)}"


class Progress:
    """A share in a common bar."""

    def __init__(self, world: World, bar: tqdm, name: str) -> None:
        self.world, self.bar, self.name = world, bar, name

    def update(self, number: int) -> None:
        if self.world.size == 1:
            self.bar.update(number)
        else:
            self.world.lifelines.check()
            self.show(self.world.store.add(self.name, number))

    def show(self, number: int) -> None:
        """The bar at `number`, which all processes have reached together."""
        self.bar.update(number - self.bar.n)


ALONE = World(torch.device("cpu"))
#: The world this process has joined; `ALONE` before that.
_joined = ALONE


def current() -> World:
    """The world this process has joined."""
    return _joined


def join(device: str) -> World:
    """The world that the launcher's environment describes, or a world of one. Raises UserError for a bad `device`.

    In processes other than the main one nothing is printed from here on: the run speaks once.
    Raises UserError too where the environment describes no world, or the main process cannot be met there.
    """
    global _joined
    check_environment()
    if not launched():
        _joined = World(choose_device(device))
        return _joined
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = own_gpu()
        torch.cuda.set_device(chosen)
    store, rank, size = meet()
    store.set_timeout(PATIENCE)
    world = World(chosen, rank, size, dist.PrefixStore("world", store))
    if size > 1:
        world.tie()  # before the engine, which waits for the others where no signal gets in
    if chosen.type == "cuda":
        check_alone_on(chosen, world.claim, rank)
    _start_engine(world, dist.PrefixStore("engine", store))
    _joined = world
    if not _joined.main:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return _joined


def _start_engine(world: World, store: dist.Store) -> None:
    """PyTorch's collectives: gloo, which waits long, on the CPU, and NCCL, which does not, between GPUs."""
    begin = functools.partial(dist.init_process_group, store=store, rank=world.rank, world_size=world.size)
    if world.device.type != "cuda":
        begin("gloo", timeout=PATIENCE)
        return
    begin("cpu:gloo,cuda:nccl", timeout=patience())
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert not isinstance(group, int)  # a number stands for a group that this process is not in
    world.group = group


def leave() -> None:
    """End the membership, where there is one; the program goes on alone."""
    global _joined
    world, _joined = _joined, ALONE
    if world.size > 1:
        with contextlib.suppress(RuntimeError):  # whoever kept the store may have left first
            world.store.add("left", 1)
            if world.main:  # it may keep the store, which the others still need
                world._until("left", world.size)
        world.lifelines.say_goodbye()
        dist.destroy_process_group()
