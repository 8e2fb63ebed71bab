"""ANN-to-SNN conversion of diffusion models.

>>> import torch, ann2snn
>>> net = ann2snn.build_unet(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4, image_size=8, bit=2).double().eval()
>>> snn = ann2snn.convert(net, schedule="stream", settle_steps="auto")
>>> x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([50, 700])
>>> bool((snn(x, t) - net(x, t)).norm() <= 1e-12 * net(x, t).norm())
True
"""

import os

# GNU OpenMP's threads wait for each other in a busy loop, and on a machine with other work they wait for those that do
# not run: two threads then take hundreds of times as long (docs/performance.md). It is read when torch is loaded.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .api import (
    build_unet,
    convert,
    cost,
    fold_thresholds,
    gap,
    load,
    quantize,
    register_attention,
    register_quantizer,
    sample,
)
from .config import DiffusionConfig, SampleConfig, SpikingConfig, UNetConfig
from .convert import Levels, SpikingNetwork
from .errors import UserError

__version__ = "0.1.0"
__all__ = [
    "DiffusionConfig",
    "Levels",
    "SampleConfig",
    "SpikingConfig",
    "SpikingNetwork",
    "UNetConfig",
    "UserError",
    "build_unet",
    "convert",
    "cost",
    "fold_thresholds",
    "gap",
    "load",
    "quantize",
    "register_attention",
    "register_quantizer",
    "sample",
]
