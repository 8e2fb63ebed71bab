"""Feature extractors by name, as `--extractor` and `ann2snn.score` choose them."""

from __future__ import annotations

import os

import torch

from ..config import require
from ..errors import UserError
from .backbone import FLAG, LIBRARIES, BackboneExtractor
from .features import FeatureExtractor, InceptionExtractor, Lite0Extractor


def make_extractor(
    kind: str = "inception",
    inception_weights: str | os.PathLike | None = None,
    resolution: int = 224,
    device: torch.device | str = "cpu",
    weights: str | os.PathLike | None = None,
) -> FeatureExtractor:
    """The extractor that `--extractor=kind` names: "inception", "lite0", "torchvision:NAME" or "timm:NAME".

    weights: of the last two, a file.

    Raises:
        UserError: the kind is unknown, or the extractor cannot be built.
    """
    if is_backbone(kind):
        require(weights is not None, f"--extractor={kind}: needs its weights, a file; add {FLAG}")
        assert weights is not None
        return BackboneExtractor(kind, weights, device)
    require(weights is None, f"{FLAG}={weights}: of --extractor=torchvision:NAME and timm:NAME alone; drop it")
    if kind == "inception":
        return InceptionExtractor(inception_weights, device=device, fc_bias=False)
    if kind == "lite0":
        return Lite0Extractor(resolution, device=device)
    raise UserError(f"--extractor={kind} is unknown: use inception, lite0, torchvision:NAME or timm:NAME")


def is_backbone(kind: str) -> bool:
    """Whether an extractor's name is one of a package's networks."""
    return kind.partition(":")[0] in LIBRARIES
