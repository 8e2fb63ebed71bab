"""What a file holds of a network, whatever the form of the file."""

from __future__ import annotations

from torch import nn

from ..config import FULL_PRECISION
from ..convert import SpikingNetwork
from ..errors import UserError
from ..nets.architecture import CONFIGS, Network
from ..nets.direct import DirectDenoiser
from ..quant import UniformQuantizer

FORMAT = 1  # of files of ours; the reference's carry none


def payload_of(net: nn.Module, **extra: object) -> dict:
    """What a file of a network holds. extra: what else is known of it, such as its step.

    Raises UserError for a network that is not one of this program's.
    """
    inner = net.net if isinstance(net, SpikingNetwork) else net
    if not isinstance(inner, Network) or type(inner.config) not in CONFIGS.values():
        raise UserError(
            f"a {type(inner).__name__} cannot be saved with its settings: only networks of this program can; keep "
            "its state_dict() beside the code that builds it"
        )
    quantized = isinstance(net, SpikingNetwork) or any(isinstance(m, UniformQuantizer) for m in inner.modules())
    if quantized and inner.config.bits == FULL_PRECISION:
        raise UserError(
            f"a {type(inner).__name__} with quantizers elsewhere than its settings say (granularity, skip, or a "
            "--arch=unet, which has its own) cannot be saved with them: keep its state_dict() beside the code"
        )
    kind = "direct" if isinstance(inner, DirectDenoiser) else "ann"
    config = {"arch": inner.config.arch, "unet": inner.config.to_dict(), "diffusion": inner.diffusion.to_dict()}
    if isinstance(net, SpikingNetwork):
        kind, config["spiking"] = "snn", net.spiking.to_dict()
    return {"kind": kind, "format": FORMAT, "ema_model": inner.state_dict(), "config": config, **extra}
