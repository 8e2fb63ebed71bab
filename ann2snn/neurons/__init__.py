"""Spiking layers: neurons and norms that keep state over spike time."""

from .batch_norm import StepBatchNorm
from .clock import Clock, Clocked, Monitor, unfold_time
from .integrate_fire import IFNeuron
from .lif import LIFNeuron
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
