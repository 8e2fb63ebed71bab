"""Spiking layers: neurons that keep state over spike time, and batch norm over it."""

from .batch_norm import StepBatchNorm
from .binned_norm import BinnedBatchNorm, batch_norm_of_rows, bins_of
from .clock import Clock, Monitor, unfold_time
from .integrate_fire import IFNeuron
from .lif import LIFNeuron

__all__ = [
    "BinnedBatchNorm",
    "Clock",
    "IFNeuron",
    "LIFNeuron",
    "Monitor",
    "StepBatchNorm",
    "batch_norm_of_rows",
    "bins_of",
    "unfold_time",
]
