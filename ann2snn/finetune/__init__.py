"""Fine-tuning of converted networks."""

from .blockwise import BlockReport, BlockTuning, prediction_gap, tune_block
from .calibrate import calibrate
from .capture import BlockInput, BlockIO, capture_block, capture_inputs, run_block
from .subject import (
    EXACT_BLOCKS,
    LEARNABLE,
    NETWORK,
    Networks,
    expand_neurons,
    make_subject,
    proxy_loss,
    subject_gap,
    subject_loss,
    tied_proxy,
    trainable_parameters,
    tunable_blocks,
)

__all__ = [
    "EXACT_BLOCKS",
    "LEARNABLE",
    "NETWORK",
    "BlockIO",
    "BlockInput",
    "BlockReport",
    "BlockTuning",
    "Networks",
    "calibrate",
    "capture_block",
    "capture_inputs",
    "expand_neurons",
    "make_subject",
    "prediction_gap",
    "proxy_loss",
    "run_block",
    "subject_gap",
    "subject_loss",
    "tied_proxy",
    "trainable_parameters",
    "tunable_blocks",
    "tune_block",
]
