"""Spiking layers: neurons and norms that keep state over spike time."""

from .batch_norm import StepBatchNorm
from .clock import Clock, Clocked, Monitor
from .integrate_fire import IFNeuron
from .lif import LIFNeuron, unfold_time
from .norm import SpikingGroupNorm

__all__ = [
    "Clock",
    "Clocked",
    "IFNeuron",
    "LIFNeuron",
    "Monitor",
    "SpikingGroupNorm",
    "StepBatchNorm",
    "unfold_time",
]
