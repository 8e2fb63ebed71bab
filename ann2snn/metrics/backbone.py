"""Features of any classifier of torchvision or timm, its weights from a file: what its last layer reads, pooled.

The network is looked up by its name, and the package says how it wants its images. Only the file's tensors are read.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import need
from ..config import require
from ..errors import UserError
from ..files.atomic import file_hash
from .features import Extracted, by_chunks, checked
from .weights import check_fit, digest, read_state

MOST_BYTES = 1 << 33  # of a file; the largest of torchvision has 2.5 GB
MOST_SIDE = 1024
LIBRARIES = ("torchvision", "timm")
FLAG = "--extractor_weights"


@dataclass(frozen=True)
class Recipe:
    """How a network wants its images: resized to side x side, then (x/255 − mean) / deviation per channel.

    mode: "bilinear" or "bicubic", both antialiased; the latter's overshoot is cut off. Nothing is cropped: what lies
    at the border of an image counts as well.
    """

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    mode: str

    def __post_init__(self) -> None:
        require(
            32 <= self.side <= MOST_SIDE,
            f"the network takes images of {self.side} pixels: 32 to {MOST_SIDE} are supported",
        )
        channels = len(self.mean) == len(self.deviation) == 3 and all(value > 0 for value in self.deviation)
        require(channels and all(map(math.isfinite, self.mean)), "the network does not take images of three channels")

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [N, 3, H, W] of 0…255 → what the network reads, [N, 3, side, side]."""
        x = F.interpolate(images / 255, (self.side, self.side), mode=self.mode, align_corners=False, antialias=True)
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        return (x.clamp(0, 1) - mean) / deviation

    @property
    def text(self) -> str:
        numbers = " and ".join(", ".join(f"{v:g}" for v in values) for values in (self.mean, self.deviation))
        return f"images resized to {self.side}x{self.side} ({self.mode}, antialiased), mean and deviation {numbers}"


@dataclass(frozen=True)
class Backbone:
    """A network without its last layer, the tensors of the file, and how names begin that belong to that layer."""

    net: nn.Module
    recipe: Recipe
    state: dict[str, Tensor]
    left_out: tuple[str, ...]


class BackboneExtractor:
    """A `features.FeatureExtractor`: a classifier of torchvision or timm without its last linear layer.

    Args:
        kind: "torchvision:resnet18", "timm:vit_small_patch16_224", or any other classifier of these packages.
        weights: file of its state dict: torch's format (weights alone) or safetensors.
        device: where to compute; results come back on the same device.
        chunk: images computed at once; 8 by default on a CPU, where more are slower; whole batches elsewhere.

    Raises:
        UserError: the network is unknown, its package is not installed, or the file cannot be used for it.
    """

    has_logits = False

    def __init__(
        self, kind: str, weights: str | os.PathLike, device: torch.device | str = "cpu", chunk: int | None = None
    ) -> None:
        library, _, model = kind.partition(":")
        require(
            library in LIBRARIES and bool(re.fullmatch(r"[A-Za-z0-9_.]+", model)),
            f"--extractor={kind}: give {' or '.join(f'{name}:NAME' for name in LIBRARIES)}",
        )
        backbone = (_of_torchvision if library == "torchvision" else _of_timm)(kind, model, weights)
        net, state, self._recipe = backbone.net, backbone.state, backbone.recipe
        expected = net.state_dict()
        tensors = {name: value for name, value in state.items() if not name.startswith(backbone.left_out)}
        if not any(name.endswith("num_batches_tracked") for name in tensors):  # which files of before 2018 have not
            tensors |= {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
        check_fit(expected, tensors, weights)
        net.load_state_dict(tensors, strict=True)
        self._device = torch.device(device)
        self._net = net.eval().requires_grad_(False).to(self._device)
        self._chunk = chunk or (8 if self._device.type == "cpu" else None)
        self.dim = self._length(kind)
        hashed = digest(state)
        recipe = self._recipe
        self.name = f"{library}:{model}-{self.dim}@{recipe.side}px-{recipe.mode}-{hashed}"
        self.distance_key = f"FD_{library}_{re.sub('[^A-Za-z0-9]', '_', model)}"
        self.notes: tuple[str, ...] = (f"{kind}: {recipe.text}; weights {Path(weights).name} ({hashed})",)

    def __call__(self, images: Tensor) -> Extracted:
        """uint8 [N, C, H, W] → Extracted([N, D]). Raises UserError for other types or shapes."""
        return Extracted(by_chunks(self._forward, checked(images), self._device, self._chunk, self.dim))

    def _forward(self, images: Tensor) -> Tensor:
        return self._net(self._recipe(images))

    def _length(self, kind: str) -> int:
        """D. Raises UserError where the network answers with anything but vectors."""
        black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        features: Any = None
        try:
            features = by_chunks(self._forward, black, self._device, None, 0)
        except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError) as error:
            raise UserError(f"--extractor={kind}: does not run on an image ({type(error).__name__})") from None
        is_vector = (
            isinstance(features, Tensor)
            and features.ndim == 2
            and len(features) == 1
            and bool(features.isfinite().all())
        )
        require(is_vector, f"--extractor={kind}: does not answer with a finite vector an image; use another network")
        return features.shape[1]


def _of_torchvision(kind: str, model: str, weights: str | os.PathLike) -> Backbone:
    from torchvision import models

    if model not in models.list_models(module=models):
        raise UserError(f"--extractor={kind}: torchvision has no classifier of that name, as resnet18 is one")
    published = list(models.get_model_weights(model))
    state = read_state(weights, FLAG, MOST_BYTES, lambda sha256: any(_is_of(weight, sha256) for weight in published))
    sha256 = file_hash(weights)
    stated = next((weight for weight in published if _is_of(weight, sha256)), models.get_model_weights(model).DEFAULT)
    transforms = stated.transforms()
    recipe = Recipe(
        int(transforms.crop_size[0]), tuple(transforms.mean), tuple(transforms.std), transforms.interpolation.value
    )
    net = models.get_model(model, weights=None, **_options(model, recipe))
    if hasattr(net, "transform_input"):
        net.transform_input = True  # as torchvision sets it where there are weights
    heads = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    require(bool(heads), f"--extractor={kind}: has no linear layer at its end; use another network")
    parent, _, child = heads[-1].rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    return Backbone(net, recipe, state, (f"{heads[-1]}.",))


def _options(model: str, recipe: Recipe) -> dict[str, Any]:
    if model.startswith("vit_"):
        return {"image_size": recipe.side}
    return {"init_weights": False} if model in ("inception_v3", "googlenet") else {}


def _is_of(published: Any, sha256: str) -> bool:
    """Whether that is the file of these weights; its name ends with the first digits."""
    return Path(published.url).stem.rpartition("-")[2] == sha256[:8]


def _of_timm(kind: str, model: str, weights: str | os.PathLike) -> Backbone:
    need("timm", "timm")
    import timm

    require(timm.is_model(model), f"--extractor={kind}: timm has no network of that name")
    state = read_state(weights, FLAG, MOST_BYTES)
    net = timm.create_model(model, pretrained=False, num_classes=0)
    settings = timm.data.resolve_model_data_config(net)
    channels, height, width = settings["input_size"]
    require(
        channels == 3 and height == width,
        f"--extractor={kind}: takes images of {channels}x{height}x{width}: use a network on square RGB images",
    )
    mode = settings["interpolation"] if settings["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    heads = net.pretrained_cfg.get("classifier") or ()
    left_out = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return Backbone(net, Recipe(height, tuple(settings["mean"]), tuple(settings["std"]), mode), state, left_out)
