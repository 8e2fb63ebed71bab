"""Tune one block, or the whole network, to answer like its quantized counterpart; keep the best.

The teacher is the quantized ANN on the same input; the student block is fed by the already tuned SNN. Two methods:
`proxy` is the published one (Fast-SNN, arXiv:2305.19868, as applied to diffusion by SDM): the loss sees the SNN
block's time-averaged output, the gradient flows through the ANN block on the time-averaged inputs. `bptt` lets the
gradient flow through the spiking dynamics themselves (`kernels.surrogate`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import SpikingNetwork
from ..distributed.precision import in_tf32
from ..distributed.world import ALONE, World
from ..errors import UserError
from .calibrate import calibrate
from .subject import (
    Batch,
    Example,
    Networks,
    Subject,
    make_subject,
    shared_error,
    subject_gap,
    subject_loss,
    trainable_parameters,
)


@dataclass(frozen=True)
class BlockTuning:
    """How one block is tuned. A block whose gap has not improved for `patience` checks stops early.

    learn: see `trainable_parameters`. neuron_lr: for thresholds and charges (both of order 1). decay: the rates fall
    to 0 by a cosine. calibrate: set thresholds and charges from data first. cache: keep the block's inputs for that
    many batches and go round them, instead of running the network up to the block at every step; 0 for never.
    """

    steps: int
    lr: float
    checks: int = 10
    patience: int = 3
    method: str = "proxy"
    learn: tuple[str, ...] = ("weights",)
    neuron_lr: float = 1e-3
    decay: bool = False
    calibrate: bool = False
    cache: int = 0
    accumulate: int = 1


@dataclass(frozen=True)
class BlockReport:
    """gap_*: relative L2 error of the block's time-averaged output on held-back inputs; best_step 0 is "unchanged"."""

    block: str
    gap_before: float
    gap_after: float
    best_step: int
    steps: int
    seconds: float


@in_tf32(False)
def tune_block(
    name: str,
    networks: Networks,
    batches: Iterator[Batch],
    held_back: list[Batch],
    tuning: BlockTuning,
    on_step: Callable[[int, Tensor], None] | None = None,
    world: World = ALONE,
) -> BlockReport:
    """Tune block `name` of the student in place, keeping the state with the smallest gap on `held_back`.

    The gap is checked about `tuning.checks` times; if nothing improves on the start, the block is left as it was.
    `batches` and `held_back` are this process's share of those of `world`, whose processes stay equal throughout.
    """
    started = time.monotonic()
    subject = make_subject(name, networks)
    keeper = _BestState(subject, [subject.example(batch) for batch in held_back], world)
    step = 0
    if keeper.before > 0:
        examples = _examples(subject, batches, tuning.cache, tuning.accumulate)
        if tuning.calibrate:
            calibrate(subject, next(examples), world)
            keeper.judge(step)
        if tuning.steps:
            step = _descend(subject, examples, tuning, keeper, on_step, world)
    keeper.restore()
    return BlockReport(name, keeper.before, keeper.gap, keeper.step, step, time.monotonic() - started)


def _descend(
    subject: Subject,
    examples: Iterator[list[Example]],
    tuning: BlockTuning,
    keeper: _BestState,
    on_step: Callable[[int, Tensor], None] | None,
    world: World,
) -> int:
    """Gradient steps until done or out of patience; returns how many."""
    optimizer, schedule = _optimizer(subject, tuning)
    interval, stale = max(1, tuning.steps // tuning.checks), 0
    for step in range(1, tuning.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for example in next(examples):
            part = subject_loss(subject, example, tuning.method) / tuning.accumulate
            part.backward()
            losses.append(part.detach())
        # By hand: the straight-through loss runs two networks with shared weights, which DDP's wrapper cannot follow.
        world.mean_gradients(p for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, torch.stack(losses).sum())  # stays where it is: reading it would wait for a GPU
        if step % interval == 0 or step == tuning.steps:
            stale = 0 if keeper.judge(step) else stale + 1
            if stale >= tuning.patience:
                break
    return step


def _optimizer(
    subject: Subject, tuning: BlockTuning
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam over what is learned of the subject; everything else of the student is frozen."""
    for parameter in subject.student.parameters():
        parameter.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    for kinds, lr in ((("weights",), tuning.lr), (("thresholds", "charges"), tuning.neuron_lr)):
        learn = tuple(kind for kind in kinds if kind in tuning.learn)
        parameters = [p for module in subject.modules for p in trainable_parameters(module, learn).values()]
        if parameters:
            groups.append({"params": parameters, "lr": lr})
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    if not groups:
        raise ValueError(f"{subject.name} has nothing to learn among {', '.join(tuning.learn)}")
    optimizer = torch.optim.Adam(groups)

    def factor(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / tuning.steps)) if tuning.decay else 1.0

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class _BestState:
    """All parameters of the subject at the smallest gap seen so far, on the examples `judged` of all processes."""

    def __init__(self, subject: Subject, judged: list[Example], world: World) -> None:
        self.modules = nn.ModuleList(subject.modules)
        self.find_gap = functools.partial(subject_gap, subject, judged, world)
        self.before = self.gap = self.find_gap()
        self.step, self.state = 0, self._copy()

    def judge(self, step: int) -> bool:
        """Keep the present state if it is better. Not a number is never better."""
        gap = self.find_gap()
        if not gap < self.gap:
            return False
        self.gap, self.step, self.state = gap, step, self._copy()
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best state back. A charge that calibration added and did not help returns to θ/2."""
        for name, parameter in self.modules.named_parameters():
            kept = self.state.get(name)
            parameter.copy_(torch.full_like(parameter, 0.5) if kept is None else kept)
            parameter.grad = None

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.modules.named_parameters()}


def _examples(subject: Subject, batches: Iterator[Batch], cache: int, parts: int) -> Iterator[list[Example]]:
    """Endless examples, each in `parts` parts: a new one at each step, or the first `cache` in turn."""

    def example() -> list[Example]:
        batch = next(batches)
        count = len(batch[0])
        if count % parts:
            raise UserError(f"--accumulate={parts}: must divide the {count} images of a process's share of a batch")
        pieces = zip(*(values.chunk(parts) for values in batch), strict=True)
        return [subject.example(piece) for piece in pieces]

    if not cache:
        while True:
            yield example()
    kept: list[list[Example]] = []
    while True:
        for index in range(cache):
            if index == len(kept):
                kept.append(example())
            yield kept[index]


@torch.no_grad()
@in_tf32(False)
def prediction_gap(teacher: nn.Module, student: SpikingNetwork, held_back: list[Batch], world: World = ALONE) -> float:
    """Relative L2 error of the whole network's output over all held-back inputs of all processes."""
    return shared_error(([student(*batch), teacher(*batch)] for batch in held_back), world)
