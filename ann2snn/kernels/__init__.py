"""Time-step kernels. Callers import from here and never learn which implementation ran; `choice` decides."""

from .choice import BACKENDS, kernels_by
from .fake_quant import fake_quant
from .follow import Levels, Neurons, Pace, Report, along, follow, working
from .integrate_fire import IFState, if_scan, spread_counts
from .lif import lif_scan
from .lif_rule import SURROGATES, LIFRule
from .norm import norm_follow
from .norm_rule import NormRule
from .spike_conv import SpikeConv, Spikes, convolves_spikes, fits_spike_conv
from .upsample import upsample_nearest

__all__ = [
    "BACKENDS",
    "SURROGATES",
    "IFState",
    "LIFRule",
    "Levels",
    "Neurons",
    "NormRule",
    "Pace",
    "Report",
    "SpikeConv",
    "Spikes",
    "along",
    "convolves_spikes",
    "fake_quant",
    "fits_spike_conv",
    "follow",
    "if_scan",
    "kernels_by",
    "lif_scan",
    "norm_follow",
    "spread_counts",
    "upsample_nearest",
    "working",
]
