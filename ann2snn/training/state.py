"""What a stopped run takes up again beside its weights: optimizer, learning-rate schedule, finished blocks.

Only what a run cannot know by itself is taken from the file, and only after it was checked. Settings stay those of the
run that resumes: `load_state_dict` of optimizers and schedulers would put whatever a file holds in their place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from ..config.names import both_values
from ..errors import UserError
from ..finetune import BlockReport

#: Settings that a resumed run must share with its beginning, or the result is that of neither.
FIXED_ON_RESUME = (
    "dataset_type",
    "lr",
    "lr_decay",
    "grad_clip",
    "warmup",
    "batch_size",
    "ema_decay",
    "ema_warmup",
    "loss_type",
    "loss_weight",
    "min_snr_gamma",
    "image_loss_weight",
    "spike_loss_weight",
    "reconstruction_loss_weight",
    "dropout",
    "seed",
    "act_init",
    "class_dropout",
    "flip",
    "amp",
    "tf32",
    "data_dir",
)
#: Of these, what earlier checkpoints do not tell.
UNTOLD = ("amp", "tf32", "data_dir", "var_type")
#: Fine-tuning's name of a flag → training's, which SDM is trained with.
SAME = {"ft_steps": "total_steps", "ft_batch_size": "batch_size"}
MOMENTS = ("exp_avg", "exp_avg_sq")
FRESH = "fresh"  # what a run that began with no other network's weights has as their content


class Initial(NamedTuple):
    """What a run begins with. path: of a network. content: a hash of its weights. weights: answers what they become."""

    path: Path
    content: str
    weights: Callable[[], dict[str, Tensor]]


def load_optimizer(optimizer: Adam, state: object, path: str | os.PathLike) -> None:
    """Take each parameter's moments and step count from what `Adam.state_dict` gave; hyperparameters stay ours.

    A parameter without an entry is one that had no gradient yet.

    Raises:
        UserError: "cannot resume from PATH: …" where the state is another optimizer's or another network's.
    """
    try:
        entries = _moments(optimizer, state)
    except ValueError as error:
        raise UserError(f"cannot resume from {path}: {error}") from None
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _moments(optimizer: Adam, state: object) -> dict[int, dict[str, Tensor]]:
    """Of each parameter, its moments in its own memory layout. Raises ValueError.

    Adam's fused kernel goes through the memory of both as it lies: a moment of a network that was channels-last on a
    GPU would be another weight's on a CPU.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = state.get("state") if isinstance(state, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("it holds no optimizer state")
    for index, entry in entries.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"its optimizer has a parameter {str(index)[:20]!r}, the network {len(parameters)}")
        if not isinstance(entry, dict) or entry.keys() != {"step", *MOMENTS}:
            raise ValueError(f"its optimizer's entry {index} is not one of Adam")
        shapes = {"step": torch.Size()} | dict.fromkeys(MOMENTS, parameters[index].shape)
        for name, shape in shapes.items():
            value = entry[name]
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
                raise ValueError(f"its optimizer's {name} of parameter {index} is no tensor {list(shape)}")
            if not bool(torch.isfinite(value).all()) or name != "exp_avg" and bool((value < 0).any()):
                raise ValueError(f"its optimizer's {name} of parameter {index} holds impossible values")
    return {
        index: entry | {name: torch.empty_like(parameters[index]).copy_(entry[name]) for name in MOMENTS}
        for index, entry in entries.items()
    }


def load_schedule(scheduler: LambdaLR, state: object, step: int, path: str | os.PathLike) -> None:
    """Set a schedule to `step`, which must be what its saved state says, and the learning rate with it.

    Call it after `load_optimizer`. The rate is computed anew from the run's own settings, by the formula that an
    uninterrupted run uses: `LambdaLR.load_state_dict` would write every entry of the file into the object.

    Raises:
        UserError: "cannot resume from PATH: …".
    """
    stored = state.get("last_epoch") if isinstance(state, dict) else None
    if type(stored) is not int or type(step) is not int or step < 0:
        raise UserError(f"cannot resume from {path}: it holds no learning-rate schedule")
    if stored != step:
        raise UserError(f"cannot resume from {path}: its schedule is at step {stored}, its weights at {step}")
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def parse_progress(
    raw: dict, subjects: Sequence[str], path: str | os.PathLike
) -> tuple[list[BlockReport], list[float]]:
    """(reports, gaps) of a fine-tuning run that stopped: what `raw["reports"]` and `raw["gaps"]` hold.

    subjects: what the run tunes, in order. Each of the first of them has a report; gaps: of the network before tuning
    and after each report.

    Raises:
        UserError: "cannot resume from PATH: …".
    """
    reports, gaps = raw.get("reports"), raw.get("gaps")
    if not isinstance(reports, list) or not isinstance(gaps, list) or len(gaps) != len(reports) + 1:
        raise UserError(f"cannot resume from {path}: it does not tell which blocks are done")
    if not all(_is_gap(gap) for gap in gaps):
        raise UserError(f"cannot resume from {path}: a gap in it is no number")
    parsed = [_report(report) for report in reports]
    known = [report for report in parsed if report is not None]
    if len(known) < len(parsed) or [report.block for report in known] != list(subjects[: len(known)]):
        raise UserError(f"cannot resume from {path}: the blocks it reports on are not the first that this run tunes")
    return known, [float(gap) for gap in gaps]


def _report(raw: object) -> BlockReport | None:
    """None if it is not what `dataclasses.asdict` gave."""
    if not isinstance(raw, dict) or raw.keys() != set(BlockReport.__dataclass_fields__):
        return None
    numbers = all(_is_gap(raw[name]) for name in ("gap_before", "gap_after", "seconds"))
    steps = all(type(raw[name]) is int and raw[name] >= 0 for name in ("best_step", "steps"))
    return BlockReport(**raw) if numbers and steps and isinstance(raw["block"], str) else None


def _is_gap(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def require_same(path: Path, name: str, stored: object, current: object, cure: str = "") -> None:
    """Raise UserError, naming both values, where a run was begun with another one."""
    if stored != current:
        raise UserError(
            f"cannot resume {path}: it was trained with {both_values(name, stored, current)}; "
            f"correct the flag or choose another --logdir{cure}"
        )


def require_same_origin(path: Path, stored: object, initial: Initial | None) -> None:
    """Raise UserError where a run was begun with other weights than it is given now.

    stored: their content, None in files of before. A run that is given none goes on with what it has.
    """
    if initial is None or stored in (None, initial.content):
        return
    difference = "with fresh weights, not with those" if stored == FRESH else "with other weights than those"
    raise UserError(
        f"cannot resume {path}: it was begun {difference} of {initial.path}; name the network that it began with, "
        "or begin in another folder (--logdir, --ft_name)"
    )
