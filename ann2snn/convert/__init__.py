"""ANN to SNN conversion, the running SNN, and the measurement of what conversion cost."""

from .calibrate import check_bins, freeze_norms
from .extras import prepare_for
from .fold import fold_thresholds
from .gap import BlockGap, GapReport, measure_gap, relative_error
from .spiking import SpikingDenoiser
from .to_snn import convert

__all__ = [
    "BlockGap",
    "GapReport",
    "SpikingDenoiser",
    "check_bins",
    "convert",
    "fold_thresholds",
    "freeze_norms",
    "measure_gap",
    "prepare_for",
    "relative_error",
]
