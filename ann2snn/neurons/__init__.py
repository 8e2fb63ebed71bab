"""Spiking layers: neurons that keep state over spike time, and batch norm over it."""

from .batch_norm import StepBatchNorm
from .clock import Clock, Monitor, unfold_time
from .integrate_fire import IFNeuron
from .lif import LIFNeuron

__all__ = ["Clock", "IFNeuron", "LIFNeuron", "Monitor", "StepBatchNorm", "unfold_time"]
