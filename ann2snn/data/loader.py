"""Endless training batches whose content depends on the seed and the step alone."""

import contextlib
import functools
import hashlib
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..signals import STOPPING
from .datasets import ImageDataset


class Share(NamedTuple):
    """Which part of every batch a process has: number `rank` of so many."""

    rank: int = 0
    processes: int = 1


WHOLE = Share()


def batches(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    share: Share = WHOLE,
    num_workers: int = 0,
    flip: bool | None = None,
    resident: torch.device | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the batches of steps `start_step`, `start_step` + 1, … without end, each uint8 [batch_size, C, H, W].

    A step's batch is a function of (seed, step) alone, so a run resumed at step k sees what an uninterrupted one
    would have seen. Each epoch is a fresh permutation of all images; batches run on across epochs, and nothing is
    dropped, whatever the sizes. `batch_size` is that of one process: the processes of `share` split a global batch of
    batch_size * share.processes images, the same images as one process with a batch that large.

    Args:
        flip: mirror each image left to right with probability 1/2; None takes the data set's own default.
        num_workers: processes that decode images; unused where the data set is held in memory.
        resident: read all images now, keep them on this device, and draw and mirror there: the same batches.

    The global random state is neither read nor changed.

    Raises:
        ValueError: a size, step or rank out of range.
        UserError: the data set is empty; an image cannot be decoded (unless `resident`: while iterating).
    """
    if batch_size < 1 or start_step < 0 or num_workers < 0 or not 0 <= share.rank < share.processes:
        raise ValueError(f"{batch_size=}, {start_step=}, {num_workers=} or {share} is out of range")
    if len(dataset) == 0:
        raise UserError(f"the data set {dataset.name} is empty; add images")
    flip = dataset.flip if flip is None else flip
    plan = _Plan(len(dataset), batch_size, seed, start_step, share)
    images = dataset.images if resident is None else dataset.all_images().to(resident)
    source = _read(dataset, plan, num_workers) if images is None else _drawn(images, plan)
    return _flipped(source, plan if flip else None)


def labels_at(dataset: ImageDataset, batch_size: int, step: int, *, seed: int, share: Share = WHOLE) -> torch.Tensor:
    """The classes, int64 [batch_size], of the images that `batches` yields at `step` with the same arguments.

    Raises UserError for a data set without classes.
    """
    if dataset.labels is None:
        raise UserError(f"--class_cond: {dataset.unlabelled}")
    return dataset.labels[_Plan(len(dataset), batch_size, seed, step, share).indices(step)]


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 images 0…255 to float32 -1…1, any shape; latents, which are of floats, stay as they are."""
    if images.is_floating_point():
        return images
    return images.float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Map -1…1 to uint8 0…255, any shape: the inverse of `to_model_range`, rounding; values outside are clamped.

    Raises:
        UserError: a value is not a number, so there is no image to show.
    """
    x = x.float()
    if x.isnan().any():
        raise UserError("the sampled images contain NaN: the network has diverged; lower the learning rate or retrain")
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class _Plan:
    """Which images, mirrored or not, one process uses at each step. Iterating gives lists of indices, endlessly."""

    def __init__(self, count: int, batch_size: int, seed: int, start_step: int, share: Share):
        self.count, self.batch_size, self.seed, self.start_step = count, batch_size, seed, start_step
        self.global_batch = batch_size * share.processes
        self.offset = share.rank * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.indices(step)
            step += 1

    def indices(self, step: int) -> list[int]:
        position = step * self.global_batch + self.offset
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            epoch, first = divmod(position + len(chosen), self.count)
            missing = self.batch_size - len(chosen)
            chosen += _permutation(self.count, self.seed, epoch)[first : first + missing].tolist()
        return chosen

    def mirrored(self, step: int) -> torch.Tensor:
        """Bool [batch_size]. Drawn for the global batch and then cut, so that the split does not matter."""
        coins = torch.rand(self.global_batch, generator=_generator(self.seed, "flip", step)) < 0.5
        return coins[self.offset : self.offset + self.batch_size]


class _BatchReader(Dataset[np.ndarray | UserError]):
    """Reads a batch by its list of indices, as a numpy array. Returns a UserError instead of raising it.

    A DataLoader would wrap an exception of its worker in a page of traceback; handed over as a value, the message
    stays the one line it is. An array comes through a pipe. A tensor would come through shared memory, of which a
    container may have 64 MB; the worker's thread that does not get it dies, and the run waits for it for ever.
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> np.ndarray | UserError:
        try:
            return torch.stack([self.dataset[i] for i in indices]).numpy()
        except UserError as error:
            return error


def _as_it_is(item: Any) -> Any:
    """In place of the DataLoader's conversion, which would make a tensor of an array inside the worker."""
    return item


def _drawn(images: torch.Tensor, plan: _Plan) -> Iterator[torch.Tensor]:
    for indices in plan:
        yield images[torch.tensor(indices, device=images.device)]


def _read(dataset: ImageDataset, plan: _Plan, num_workers: int) -> Iterator[torch.Tensor]:
    # The generator keeps DataLoader from drawing its workers' seeds out of the global random state.
    loader: DataLoader[np.ndarray | UserError] = DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=plan,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_run,
    )
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    # torch's handler would raise for a worker that dies wherever the run is, even inside a step. Without it the next
    # batch raises, a few seconds later.
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        signal.signal(signal.SIGCHLD, before)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield torch.from_numpy(item)
    finally:
        del items  # an error's traceback would keep the workers, which no signal ends, beyond the end of the program


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and launchers signal whole process groups; the run finishes its step, and needs its workers for that."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _flipped(source: Iterator[torch.Tensor], plan: _Plan | None) -> Iterator[torch.Tensor]:
    if plan is None:
        yield from source
        return
    for step, images in enumerate(source, plan.start_step):
        yield torch.where(plan.mirrored(step).to(images.device)[:, None, None, None], images.flip(-1), images)


@functools.lru_cache(maxsize=4)  # neighbouring steps share an epoch
def _permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=_generator(seed, "order", epoch))


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    # torch's CPU generator uses 32 bits of its seed; hashing spreads all three parts over them.
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
