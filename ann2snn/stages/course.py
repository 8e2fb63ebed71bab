"""A small training whose only results are files at its end: kept beside them meanwhile, so that it can go on."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from ..checkpoints import checkpoint
from ..checkpoints.states import load_state, state_in
from ..config import require
from ..config.names import both_values
from ..errors import UserError
from ..files.lock import run_lock
from ..files.warning import warn
from ..signals import Interruption, Stopped
from ..training.state import load_optimizer

KIND = "unfinished"
SECONDS = 60.0  # between two writings of the state
SHOWN_EVERY = 50  # steps

#: (step, images uint8 [B, C, H, W]) → (what is shown of the step, the loss).
Forward = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Unfinished:
    """Where the state of a training is kept until its files are written, and the settings that it must share with it.

    settings: plain values, by the names of their flags.
    """

    path: Path
    settings: dict[str, Any]

    @classmethod
    def of(cls, out: Path, settings: dict[str, Any]) -> Unfinished:
        """That of the training that will write `out`."""
        return cls(unfinished_path(out), settings)

    def read(self) -> dict | None:
        """What is kept, None if that is no step. Raises UserError for anything but this training's state."""
        if not self.path.exists():
            return None
        raw = checkpoint.read(self.path)
        require(raw.get("kind") == KIND, f"{self.path} is in the way: it is no unfinished training; move it")
        step = raw.get("step", 0)
        if step == 0:  # nothing to lose
            return None
        require(
            step <= self.settings["steps"], f"refusing {self.path}: it is at step {step}, beyond the last; remove it"
        )
        stored = raw.get("config", {}).get("training")
        for name, value in self.settings.items():
            before = stored.get(name) if isinstance(stored, dict) else None
            require(
                before == value,
                f"cannot continue {self.path}: it was begun with {both_values(name, before, value)}; correct the "
                "flag, choose another --out, or remove that file to begin anew",
            )
        return raw


def unfinished_path(out: Path) -> Path:
    """Where the state of the training that will write `out` is kept."""
    return out.with_name(f"{out.stem}.{KIND}.pt")


@contextlib.contextmanager
def owning(out: Path) -> Iterator[None]:
    """Be the only training that writes `out`. Raises UserError while there is another."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_lock(out.parent, out.name))
        except UserError as error:
            raise UserError(str(error).replace("--logdir", "--out")) from None
        yield


class Course:
    """The steps of a training, taken up where the state kept of it ends.

    optimizer: Adam or AdamW. schedule: of its rate, fresh. Raises UserError for a state that is not this training's.
    """

    def __init__(
        self, net: nn.Module, optimizer: Adam, schedule: LRScheduler | None = None, kept: Unfinished | None = None
    ) -> None:
        self.net, self.optimizer, self.schedule, self.kept = net, optimizer, schedule, kept
        self.step, self.value, self.saved = 0, math.nan, -1
        if kept is not None and (raw := kept.read()) is not None:
            self._restore(raw, kept.path)

    def run(self, source: Iterator[Tensor], total: int, forward: Forward) -> None:
        """Take the steps from `step` to `total`; `source` yields the batches of these.

        The state is written at the start, so that a disk that refuses is known before there is anything to lose, then
        from time to time, and where a signal or an unreadable image ends the training. Raises UserError, or Stopped.
        """
        self.keep()
        last = time.monotonic()
        bar = tqdm(total=total, initial=self.step, desc="training", leave=False, disable=None)
        with Interruption() as interruption, bar:
            while self.step < total:
                shown, loss = forward(self.step, self._next(source))
                self._advance(loss)
                if (self.step - 1) % SHOWN_EVERY == 0 or self.step == total:
                    self.value = float(shown.detach())
                    if not math.isfinite(self.value):
                        self._refuse_divergence()
                    bar.set_postfix(mse=f"{self.value:.4f}", refresh=False)
                bar.update(1)
                if interruption.requested or self.step == total or time.monotonic() - last >= SECONDS:
                    self.keep()
                    last = time.monotonic()
                if interruption.requested:
                    print(f"stopped at step {self.step}; run the same command to continue")
                    raise Stopped(interruption.requested)

    def _next(self, source: Iterator[Tensor]) -> Tensor:
        try:
            return next(source)
        except UserError as error:
            self.keep()
            kept = f"; step {self.step} is kept in {self.kept.path}" if self.kept else ""
            raise UserError(f"{error}{kept}") from None

    def _advance(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1

    def keep(self) -> None:
        """Write the state, if it is new. Raises UserError: it diverged, or, naming a rescue file, the disk refuses."""
        if not all(bool(torch.isfinite(value).all()) for value in self.net.state_dict().values()):
            self._refuse_divergence()
        if self.kept is None or self.saved == self.step:
            return
        payload = {
            "kind": KIND,
            "format": checkpoint.FORMAT,
            "step": self.step,
            "shown": self.value,
            "net_model": self.net.state_dict(),
            "optim": self.optimizer.state_dict(),
            "config": {"training": self.kept.settings},
        }
        self.saved = self.step
        try:
            checkpoint.save(self.kept.path, payload)
        except UserError as error:
            raise (checkpoint.rescued(self.kept.path, payload, error) if self.step else error) from None

    def finish(self) -> None:
        """Forget the state: everything is written."""
        if self.kept is None:
            return
        try:
            os.remove(self.kept.path)
        except OSError as error:
            warn(f"{self.kept.path} is done with and cannot be removed ({error.strerror})")

    def _restore(self, raw: dict, path: Path) -> None:
        load_state(self.net, state_in(raw, "net_model", path), path)
        load_optimizer(self.optimizer, raw.get("optim"), path)
        shown = raw.get("shown")
        self.step, self.value = raw.get("step", 0), shown if isinstance(shown, float) else math.nan
        self.saved = self.step
        if self.schedule is not None:
            with warnings.catch_warnings():  # about a schedule that steps before its optimizer
                warnings.simplefilter("ignore")
                for _ in range(self.step):  # its rounding is that of step after step
                    self.schedule.step()
        print(f"resuming {path} at step {self.step}")

    def _refuse_divergence(self) -> NoReturn:
        self.finish()  # its state would keep a run with another rate out
        raise UserError(f"the autoencoder diverged before step {self.step + 1}: lower --lr")
