"""ANN to SNN conversion, the running SNN, and the measurement of what conversion cost."""

from ..kernels import Levels
from .extras import prepare_for
from .fold import fold_thresholds
from .gap import BlockGap, GapReport, measure_gap, relative_error
from .incremental import DeviceNetwork, as_device
from .network import SpikingNetwork
from .quantizers import register_quantizer
from .to_snn import attach, convert
from .trace import Description

__all__ = [
    "BlockGap",
    "Description",
    "DeviceNetwork",
    "GapReport",
    "Levels",
    "SpikingNetwork",
    "as_device",
    "attach",
    "convert",
    "fold_thresholds",
    "measure_gap",
    "prepare_for",
    "register_quantizer",
    "relative_error",
]
