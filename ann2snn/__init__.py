"""ANN-to-SNN conversion of diffusion models.

>>> import torch, ann2snn
>>> net = ann2snn.build_unet(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, image_size=8, bit=2).double().eval()
>>> snn = ann2snn.convert(net, schedule="stream", settle_steps="auto")
>>> x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([50, 700])
>>> bool((snn(x, t) - net(x, t)).norm() <= 1e-12 * net(x, t).norm())
True
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING

from .installed import require_installed

# GNU OpenMP's threads wait for each other in a busy loop, and on a machine with other work they wait for those that do
# not run: two threads then take hundreds of times as long (docs/performance.md). It is read when torch is loaded.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

require_installed()  # before anything that needs torch

if TYPE_CHECKING:
    from .api import (
        as_device,
        build_unet,
        convert,
        cost,
        denoising_loss,
        edit,
        export_nir,
        export_onnx,
        export_program,
        fold_thresholds,
        gap,
        in_pipeline,
        inpaint,
        interpolate,
        invert,
        load,
        load_autoencoder,
        noise_statistics,
        pretrained,
        quantize,
        register_attention,
        register_quantizer,
        round_trip,
        sample,
        save,
        search_sigma_rel,
        trajectory,
    )
    from .config import DiffusionConfig, SampleConfig, SpikingConfig, UNetConfig
    from .convert import Levels, SpikingNetwork
    from .errors import UserError
    from .scores import score

__version__ = "0.1.0"
#: Name → module. Imported when first used: importing torch and torchvision takes seconds, which --help can do without.
_PLACES = {
    **dict.fromkeys(
        ("as_device", "build_unet", "convert", "cost", "fold_thresholds", "gap", "load", "pretrained", "quantize"),
        "ann2snn.api",
    ),
    **dict.fromkeys(("register_attention", "register_quantizer", "sample", "save", "trajectory"), "ann2snn.api"),
    **dict.fromkeys(
        ("edit", "export_nir", "inpaint", "interpolate", "invert", "noise_statistics", "round_trip"), "ann2snn.api"
    ),
    **dict.fromkeys(("denoising_loss", "search_sigma_rel"), "ann2snn.api"),
    **dict.fromkeys(("export_onnx", "export_program", "in_pipeline", "load_autoencoder"), "ann2snn.api"),
    **dict.fromkeys(("DiffusionConfig", "SampleConfig", "SpikingConfig", "UNetConfig"), "ann2snn.config"),
    **dict.fromkeys(("Levels", "SpikingNetwork"), "ann2snn.convert"),
    "UserError": "ann2snn.errors",
    "score": "ann2snn.scores",
}
__all__ = [
    "DiffusionConfig",
    "Levels",
    "SampleConfig",
    "SpikingConfig",
    "SpikingNetwork",
    "UNetConfig",
    "UserError",
    "as_device",
    "build_unet",
    "convert",
    "cost",
    "denoising_loss",
    "edit",
    "export_nir",
    "export_onnx",
    "export_program",
    "fold_thresholds",
    "gap",
    "in_pipeline",
    "inpaint",
    "interpolate",
    "invert",
    "load",
    "load_autoencoder",
    "noise_statistics",
    "pretrained",
    "quantize",
    "register_attention",
    "register_quantizer",
    "round_trip",
    "sample",
    "save",
    "score",
    "search_sigma_rel",
    "trajectory",
]


def _imported(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


if not TYPE_CHECKING:  # a type checker knows the names that there are, and tells of others
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """`ann2snn.convert` and `.cost` are the functions, though importing the packages of these names sets them."""

    convert = property(lambda self: _imported("convert"), lambda self, package: None)
    cost = property(lambda self: _imported("cost"), lambda self, package: None)


sys.modules[__name__].__class__ = _Package
