"""The file of sampling paths, `trajectory.npz`: states of two networks on the way from the same noise to images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..files.atomic import replacing
from ..files.npz import read_npz

LARGEST = 1 << 26  # bytes unpacked; a real file has at most some MB
MOST_FRAMES, MOST_IMAGES, MOST_SIDE = 64, 8, 2048
KINDS = {"ann": "u", "snn": "u", "times": "f", "how": "U"}


@dataclass(frozen=True)
class SamplingPaths:
    """ann, snn: uint8 [F, N, C, H, W], from noise to the finished images. times [F − 1]: diffusion times of the states.

    how: settings of the sampler and of the spiking network, unchecked.
    """

    ann: np.ndarray
    snn: np.ndarray
    times: np.ndarray
    how: dict


def save_paths(path: str | os.PathLike, paths: SamplingPaths) -> None:
    """Write the arrays to one npz, whole or not at all; `how` is a JSON object. No pickles."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        times, settings_text = paths.times.astype(np.float64), np.array(json.dumps(paths.how))
        np.savez_compressed(file, ann=paths.ann, snn=paths.snn, times=times, how=settings_text)


def load_paths(path: str | os.PathLike) -> SamplingPaths:
    """What `save_paths` wrote. Nothing in the file is trusted. Raises UserError for anything else."""
    try:
        arrays = read_npz(path, KINDS, LARGEST)
        ann, snn, times, settings_text = (arrays[name] for name in KINDS)
        for states in (ann, snn):
            _require(states.dtype == np.uint8 and states.ndim == 5 and states.shape == ann.shape, "no states of both")
        frames, images, channels, height, width = ann.shape
        _require(2 <= frames <= MOST_FRAMES and 1 <= images <= MOST_IMAGES, "more or fewer states than can be shown")
        _require(channels in (1, 3) and 1 <= min(height, width), "its states are no images")
        _require(max(height, width) <= MOST_SIDE, f"its images have more than {MOST_SIDE} pixels a side")
        fits = times.dtype == np.float64 and times.shape == (frames - 1,) and bool(np.isfinite(times).all())
        _require(fits, "its times do not fit the states")
        settings: Any = json.loads(str(settings_text)) if settings_text.ndim == 0 else None
        _require(isinstance(settings, dict), "it does not say how the states came about")
    except (KeyError, TypeError, OverflowError, RecursionError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as sampling paths: {' '.join(str(error).split())}") from None
    return SamplingPaths(ann, snn, times, settings)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
