"""ANN to SNN conversion, the running SNN, and the measurement of what conversion cost."""

from .gap import BlockGap, GapReport, measure_gap, relative_error
from .spiking import SpikingDenoiser
from .to_snn import convert

__all__ = ["BlockGap", "GapReport", "SpikingDenoiser", "convert", "measure_gap", "relative_error"]
