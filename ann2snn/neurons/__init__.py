"""Spiking layers: neurons and norms that keep state over spike time."""

from .clock import Clock, Clocked, Monitor
from .integrate_fire import IFNeuron
from .norm import SpikingGroupNorm

__all__ = ["Clock", "Clocked", "IFNeuron", "Monitor", "SpikingGroupNorm"]
