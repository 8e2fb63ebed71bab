"""Feature extractors by name, as `--extractor` and `ann2snn.score` choose them."""

from __future__ import annotations

import os

import torch

from ..errors import UserError
from .features import FeatureExtractor, InceptionExtractor, Lite0Extractor


def make_extractor(
    kind: str = "inception",
    inception_weights: str | os.PathLike | None = None,
    resolution: int = 224,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """The extractor that `--extractor=kind` names: "inception" or "lite0".

    Raises:
        UserError: the kind is unknown, or the extractor cannot be built.
    """
    if kind == "inception":
        return InceptionExtractor(inception_weights, device=device, fc_bias=False)
    if kind == "lite0":
        return Lite0Extractor(resolution, device=device)
    raise UserError(f"--extractor={kind} is unknown: use inception, lite0")
