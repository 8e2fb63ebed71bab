"""The file of spike rasters, `raster.npz`: several run modes of one network on the same neurons."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from ..config import DirectSpiking, SpikingConfig
from ..config.direct import MOST_STEPS as MOST_WINDOW
from ..convert.raster import Raster
from ..errors import UserError
from ..files.atomic import replacing
from ..files.npz import read_npz

LARGEST = 1 << 26  # bytes unpacked; a real file has some 10 kB
MOST_MODES, MOST_LAYERS, MOST_NEURONS, MOST_STEPS = 16, 1000, 256, 20_000  # more than can be drawn
KINDS = {"layers": "U", "neurons": "i", "window": "i", "t": "f", "modes": "U"}


def save_rasters(path: str | os.PathLike, rasters: Sequence[Raster]) -> None:
    """Write rasters of the same neurons to one npz, whole or not at all.

    Arrays: layers, names [L]; neurons int64 [L, K]; window; t; modes, a JSON object of settings for each raster
    (of a `SpikingConfig`, or of a `DirectSpiking`, which has `arch`);
    events_0, events_1, …, int8 [L, K, steps]; potentials_0, …, float16 of the same shape, where recorded. No pickles.
    Raises ValueError if the rasters differ in more than how the network ran.
    """
    first = rasters[0]
    for raster in rasters[1:]:
        same_settings = (raster.layers, raster.window, raster.t) == (first.layers, first.window, first.t)
        if not same_settings or not torch.equal(raster.neurons, first.neurons):
            raise ValueError("rasters in one file must be of the same neurons, image and time")
    events: dict[str, Any] = {f"events_{index}": raster.events.numpy() for index, raster in enumerate(rasters)}
    potentials: dict[str, Any] = {
        f"potentials_{index}": raster.potentials.numpy()
        for index, raster in enumerate(rasters)
        if raster.potentials is not None
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            layers=np.array(first.layers),
            neurons=first.neurons.numpy(),
            window=np.int64(first.window),
            t=np.float64(first.t),
            modes=np.array([json.dumps(raster.spiking.to_dict()) for raster in rasters]),
            **events,
            **potentials,
        )


def load_rasters(path: str | os.PathLike) -> list[Raster]:
    """What `save_rasters` wrote. Nothing in the file is trusted. Raises UserError for anything else."""
    try:
        events = {f"events_{index}": "i" for index in range(MOST_MODES)}
        potentials = {f"potentials_{index}": "f" for index in range(MOST_MODES)}
        return _checked(read_npz(path, KINDS | events | potentials, LARGEST))
    except (KeyError, AttributeError, TypeError, OverflowError, RecursionError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as spike rasters: {' '.join(str(error).split())}") from None


def _checked(arrays: dict[str, np.ndarray]) -> list[Raster]:
    """Raises ValueError (UserError included), KeyError, or what json and SpikingConfig raise for foreign settings."""
    layers, neurons, window, t, modes = (arrays[name] for name in ("layers", "neurons", "window", "t", "modes"))
    _require(layers.dtype.kind == "U" and layers.ndim == 1 and len(layers) > 0, "layers are no list of names")
    _require(neurons.dtype == np.int64 and neurons.ndim == 2 and len(neurons) == len(layers), "neurons do not fit")
    single = window.dtype == np.int64 and window.ndim == 0
    _require(single and bool(1 <= window <= MOST_WINDOW), f"no window of 1 to {MOST_WINDOW} steps")
    _require(t.dtype == np.float64 and t.ndim == 0 and bool(np.isfinite(t)), "no diffusion time")
    _require(modes.dtype.kind == "U" and modes.ndim == 1, "no list of modes")
    _require(1 <= len(modes) <= MOST_MODES, f"no list of 1 to {MOST_MODES} modes")
    few = len(layers) <= MOST_LAYERS and neurons.shape[1] <= MOST_NEURONS
    _require(few and layers.itemsize <= 4 * 300, "more layers, neurons or text than can be drawn")
    names = tuple(str(name) for name in layers)
    rasters = []
    for index, mode in enumerate(modes):
        events = arrays[f"events_{index}"]
        _require(events.dtype == np.int8 and events.ndim == 3, "events are no int8 [layers, neurons, steps]")
        _require(events.shape[:2] == neurons.shape and events.size > 0, "events do not fit the neurons")
        _require(window <= events.shape[2] <= MOST_STEPS, f"events are not of {window} to {MOST_STEPS} steps")
        spiking = _spiking(json.loads(str(mode)))
        least, most = (0, 1) if isinstance(spiking, DirectSpiking) else (-spiking.burst, spiking.burst)
        _require(bool(least <= events.min() and events.max() <= most), f"events are not of {least} to {most} spikes")
        tensors = torch.from_numpy(neurons), torch.from_numpy(events)
        rasters.append(Raster(spiking, names, *tensors, int(window), float(t), _potentials(arrays, index)))
    return rasters


def _potentials(arrays: dict[str, np.ndarray], index: int) -> torch.Tensor | None:
    """Those beside the events; None where there are none, as in older files."""
    potentials = arrays.get(f"potentials_{index}")
    if potentials is None:
        return None
    fits = potentials.dtype == np.float16 and potentials.shape == arrays[f"events_{index}"].shape
    _require(fits and bool(np.isfinite(potentials).all()), "potentials do not fit the events")
    return torch.from_numpy(potentials)


def _spiking(raw: dict) -> SpikingConfig | DirectSpiking:
    if "arch" in raw:
        return DirectSpiking(**raw)
    config = SpikingConfig(**{f.name: raw[f.name] for f in fields(SpikingConfig) if f.name in raw or f.name != "burst"})
    _require(isinstance(config.signed, bool), "signed is no boolean")
    return config


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
