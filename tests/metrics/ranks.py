"""Several processes' worlds as threads of one, for what only sums over them."""

import threading
from collections.abc import Callable, Sequence

import torch


class Ranks:
    """Stands in for `World` in every thread: every call waits for all of them."""

    def __init__(self, size: int) -> None:
        self.size, self.given = size, []
        self.barrier = threading.Barrier(size)

    def largest(self, number: int) -> int:
        return int(self._together(torch.tensor(number)).max())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self._together(value.double()).sum(0)

    def _together(self, value: torch.Tensor) -> torch.Tensor:
        self.given.append(value)
        self.barrier.wait(60)
        values = torch.stack(self.given)
        if self.barrier.wait(60) == 0:
            self.given.clear()
        self.barrier.wait(60)
        return values


def over_ranks(parts: Sequence[object], reduce: Callable[[object, Ranks], object]) -> list[object]:
    """`reduce(part, world)` of every part, each in a thread of its own."""
    world, results = Ranks(len(parts)), [None] * len(parts)

    def work(rank: int) -> None:
        results[rank] = reduce(parts[rank], world)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
