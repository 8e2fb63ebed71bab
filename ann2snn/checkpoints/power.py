"""The power-function averages that a training kept: in its checkpoint those of its step, in snapshots those of before.

A snapshot is a checkpoint like any other, of one average. The training's checkpoint lists the content of each by hash,
so that what another run left, or a fault changed, is not taken for one of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.power_ema import Profile, check_sigma_rel, coefficients
from ..errors import UserError
from . import checkpoint, seal
from .states import state_in

ENTRY = "power_ema"  # of a training's checkpoint
#: Endings of what is positive in every network: a norm's variances, the steps of quantizers.
POSITIVE = ("running_var", "act_alpha", "wgt_alpha", "scale")


@dataclass(frozen=True)
class Kept:
    """averages: σ_rel → weights at the checkpoint's step. snapshots: of each earlier average, the hash of its file."""

    averages: dict[float, dict[str, Tensor]]
    snapshots: dict[Profile, str]


def snapshot_name(average: Profile) -> str:
    """Its file in the folder of snapshots."""
    return f"{average.sigma_rel:g}_{average.step}.pt"


def payload_of(kept: Kept) -> dict:
    """What `kept_in` reads from a checkpoint: plain lists."""
    return {
        "sigma_rel": list(kept.averages),
        "averages": list(kept.averages.values()),
        "snapshots": [[*average, content] for average, content in kept.snapshots.items()],
    }


def kept_in(raw: dict, path: str | os.PathLike) -> Kept:
    """Power-function averages in the checkpoint `raw` of `path`; empty where it has none. Raises UserError."""
    if ENTRY not in raw:
        return Kept({}, {})
    stored, step = raw[ENTRY], raw.get("step", 0)
    try:
        sigmas, averages, listed = (stored[name] for name in ("sigma_rel", "averages", "snapshots"))
        states = [state_in({ENTRY: state}, ENTRY, path) for state in averages]
        snapshots = {Profile(check_sigma_rel(sigma), at): content for sigma, at, content in listed}
        steps_valid = type(step) is int and all(type(p.step) is int and 0 < p.step <= step for p in snapshots)
        known = all(p.sigma_rel in sigmas for p in snapshots)
        named = all(isinstance(content, str) for content in snapshots.values())
        kept = Kept({check_sigma_rel(sigma): state for sigma, state in zip(sigmas, states, strict=True)}, snapshots)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"refusing {path}: its power-function averages are unreadable") from None
    if not (steps_valid and known and named and kept.averages):
        raise UserError(f"refusing {path}: its power-function averages are unreadable")
    return kept


@dataclass(frozen=True)
class Built:
    """An average built after training. distance: of its profile from the wanted one, see `coefficients`.

    used, missing: snapshots that were there, and listed ones that were not.
    """

    loaded: checkpoint.Loaded
    distance: float
    used: int
    missing: int

    def __str__(self) -> str:
        lost = f" ({self.missing} more are not there)" if self.missing else ""
        name = f"{self.loaded.path}, {self.loaded.weights}"
        return f"{name}: of {self.used} snapshots{lost}, its profile is off by {self.distance:.2%}"


def power_average(path: str | os.PathLike, sigma_rel: float, folder: Path, **load_options: Any) -> Built:
    """The network of a training, its weights averaged by the power function of width σ_rel up to the file's step.

    folder: of the snapshots; those that are not there are done without. load_options: as `checkpoint.load`.
    Accumulates in float64. `weights` of what is loaded is "power" and the width.

    Raises UserError: the file has no such averages, or it or a snapshot is damaged, or another run's.
    """
    sigma_rel, raw = check_sigma_rel(sigma_rel), checkpoint.read(path)
    kept, step = kept_in(raw, path), raw.get("step", 0)
    if not kept.averages or not step:
        raise UserError(f"{path} holds no power-function averages: train with --power_ema=0.05,0.1 to choose one later")
    earlier = {average: content for average, content in kept.snapshots.items() if average.step < step}
    available = [average for average in earlier if (folder / snapshot_name(average)).exists()]
    profiles = [*(Profile(sigma, step) for sigma in kept.averages), *available]
    factors, distance = coefficients(profiles, Profile(sigma_rel, step))
    total = _Sum(state_in(raw, "ema_model", path), path)
    for factor, state in zip(factors, kept.averages.values(), strict=False):
        total.add(float(factor), state)
    for factor, average in zip(factors[len(kept.averages) :], available, strict=True):
        total.add(float(factor), _snapshot(folder / snapshot_name(average), earlier[average], path))
    loaded = checkpoint.load(path, payload=raw | {"ema_model": total.state()}, **load_options)
    loaded.weights = f"power{sigma_rel:g}"
    return Built(loaded, distance, len(available), len(earlier) - len(available))


def _snapshot(path: Path, content: str, owner: str | os.PathLike) -> dict[str, Tensor]:
    raw = checkpoint.read(path)
    if raw.get(seal.HASH) != content:
        raise UserError(f"refusing {path}: it is not the snapshot that {owner} lists, but another run's")
    return state_in(raw, "ema_model", path)


class _Sum:
    """Weights times factors that sum to 1. What holds whole numbers is taken from `like`."""

    def __init__(self, like: dict[str, Tensor], path: str | os.PathLike) -> None:
        self.like, self.path = like, path
        floating = {name: value for name, value in like.items() if value.is_floating_point()}
        self.sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in floating.items()}
        positive = {name: value for name, value in floating.items() if name.endswith(POSITIVE)}
        self.least = {name: torch.full_like(value, torch.inf, dtype=torch.float64) for name, value in positive.items()}

    def add(self, factor: float, state: dict[str, Tensor]) -> None:
        for name, value in self.like.items():
            if name not in state or state[name].shape != value.shape:
                raise UserError(f"refusing {self.path}: an average of it has no {name} of its network")
        for name, total in self.sums.items():
            value = state[name].double()
            total.add_(value, alpha=factor)
            if name in self.least:
                self.least[name] = torch.minimum(self.least[name], value)

    def state(self) -> dict[str, Tensor]:
        """Factors below 0 may take below 0 what is positive in every snapshot: the smallest of them then stands."""
        sums = self.sums | {
            name: torch.where(self.sums[name] > 0, self.sums[name], least) for name, least in self.least.items()
        }
        return self.like | {name: value.to(self.like[name].dtype) for name, value in sums.items()}
