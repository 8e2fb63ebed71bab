"""`ann2snn.score`: how near some images come to others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .config import check_limits, require
from .distributed.runtime import check_device_name, naming_device
from .errors import UserError
from .generate.images import image_set
from .metrics import registry
from .metrics.compare import chosen, compare
from .metrics.extractors import make_extractor
from .metrics.fad import FadExtractor
from .metrics.fad_encoder import load_autoencoder
from .metrics.features import FeatureExtractor
from .metrics.metric import Setting


def score(
    images: Tensor | str | os.PathLike,
    against: Tensor | str | os.PathLike,
    metrics: Sequence[str] | None = None,
    *,
    extractor: str | FeatureExtractor | None = "inception",
    weights: str | os.PathLike | None = None,
    k: int = 3,
    fad_encoder: str | os.PathLike | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """How near some images come to others, the real ones: `evaluate.py --score A --against B`.

    images, against: uint8 [N, C, H, W], a folder of images, or an npz with uint8 [N, H, W, C] under `arr_0`.
    metrics: any of "fd", "is", "kid", "prdc", "fad" and what `ann2snn.metrics.registry.METRICS` has been given besides;
    by default all that can be computed.
    extractor: "inception", "lite0", "torchvision:NAME" or "timm:NAME", or one of your own (docs/extending.md); None for
    metrics that need no features. weights: its file, where it is not the packages' own.
    k: the neighbour that sets the radius of every ball, of "prdc". fad_encoder: the autoencoder's file, of "fad".

    Returns figures by name, "count" of the images, "extractor", and "notes", a list of sentences to tell beside the
    figures. Raises UserError for images, files and metrics that nothing can be done with.
    """
    neighbours, place = check_limits("pr_k", k, "k"), _device(device)
    sets = image_set(images, "images"), image_set(against, "against")
    names, setting = chosen(
        None if metrics is None else registry.known(metrics, "metrics"),
        ("fad",) if fad_encoder is not None else (),
        lambda: _extractor(extractor, weights, place),
        lambda: _autoencoder(fad_encoder, place),
        Setting(neighbours=neighbours, device=place, count_names=("images", "against")),
    )
    return compare(*sets, names, setting)


def _extractor(given: object, weights: str | os.PathLike | None, device: torch.device) -> FeatureExtractor | None:
    if isinstance(given, str):
        own, others = (weights, None) if given == "inception" else (None, weights)
        return make_extractor(given, own, device=device, weights=others)
    require(weights is None, f"weights={weights}: of an extractor that is given by name; drop it")
    fits = callable(given) and all(hasattr(given, name) for name in ("name", "dim", "distance_key", "notes"))
    message = f"extractor is a {type(given).__name__}: give a name, or an object as docs/extending.md describes it"
    require(given is None or fits, message)
    return cast(FeatureExtractor | None, given)


def _autoencoder(path: object, device: torch.device) -> FadExtractor:
    require(path is not None, "metrics: fad needs an autoencoder; give fad_encoder, its file")
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"fad_encoder is a {type(path).__name__}: give the name of a file")
    return FadExtractor(load_autoencoder(path), "eval", device)


def _device(device: object) -> torch.device:
    check_device_name(device)
    with naming_device(device):
        return torch.zeros(0, device=cast(str, device)).device
