"""Fine-tuning of converted networks."""

from .blockwise import (
    BlockReport,
    BlockTuning,
    block_gap,
    prediction_gap,
    proxy_loss,
    tied_proxy,
    trainable_parameters,
    tunable_blocks,
    tune_block,
)
from .capture import BlockIO, capture_block

__all__ = [
    "BlockIO",
    "BlockReport",
    "BlockTuning",
    "block_gap",
    "capture_block",
    "prediction_gap",
    "proxy_loss",
    "tied_proxy",
    "trainable_parameters",
    "tunable_blocks",
    "tune_block",
]
