"""Time-step kernels. Callers import from here and never learn which implementation ran; `choice` decides."""

from .choice import BACKENDS, kernels_by
from .fake_quant import fake_quant
from .lif import SURROGATES, LIFRule, lif_scan
from .norm import Firing, NormIFState, NormRule, NormState, cumulative_norm, norm_count, norm_scan
from .spike_conv import SpikeConv, Spikes, convolves_spikes, fits_spike_conv
from .torch_ref import IFRule, IFState, if_scan, spread_counts
from .upsample import upsample_nearest

__all__ = [
    "BACKENDS",
    "SURROGATES",
    "Firing",
    "IFRule",
    "IFState",
    "LIFRule",
    "NormIFState",
    "NormRule",
    "NormState",
    "SpikeConv",
    "Spikes",
    "convolves_spikes",
    "cumulative_norm",
    "fake_quant",
    "fits_spike_conv",
    "if_scan",
    "kernels_by",
    "lif_scan",
    "norm_count",
    "norm_scan",
    "spread_counts",
    "upsample_nearest",
]
