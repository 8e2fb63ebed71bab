"""ANN → SNN: the same weights in a U-Net of spiking parts."""

from __future__ import annotations

from torch import nn

from quant import QuantReLU

from ..config import SpikingConfig
from ..errors import UserError
from ..nets import UNet
from .spiking import SpikingDenoiser, require_quantized


def convert(ann: UNet, spiking: SpikingConfig | None = None, **options: object) -> SpikingDenoiser:
    """Convert a quantized ANN into an integrate-and-fire network that shares none of its storage.

    Every quantized ReLU with b bits becomes an IF neuron with threshold `act_alpha` and window T = 2^b − 1.
    Give a `SpikingConfig`, or its fields as options (schedule, signed, stream_norm, if_neuron, settle_steps, burst).

    Raises UserError for a full-precision network and for activations whose levels are not uniform (powers of two):
    T equal spikes can only count uniform levels.
    """
    check_convertible(ann)
    snn = SpikingDenoiser(ann.config, spiking or SpikingConfig(**options), ann.diffusion)
    reference = next(ann.parameters())
    snn.to(device=reference.device, dtype=reference.dtype)
    snn.unet.load_state_dict(ann.state_dict(), strict=True)
    return snn.eval()


def check_convertible(ann: nn.Module) -> None:
    """Raise UserError unless every activation of `ann` can become an IF neuron."""
    if not isinstance(ann, UNet):
        raise UserError(f"cannot convert a {type(ann).__name__}: give the quantized U-Net (ann2snn.load or build_unet)")
    require_quantized(ann.config)
    for name, module in ann.named_modules():
        if isinstance(module, QuantReLU) and not module.is_uniform:
            raise UserError(
                f"cannot convert {name}: its activation levels are powers of two, and spikes count uniform levels; "
                "use uniform activations (APoT is for weights)"
            )
