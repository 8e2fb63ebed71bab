"""Diffusion processes, what the network predicts, losses and samplers."""

from .cld import CLD
from .likelihood import variational_bound
from .loss import squared_error, training_loss
from .noise import ImageNoise
from .samplers import SAMPLERS, analytic_statistics, check, options_of, sample_ddim, sample_ddpm
from .vp import VP

__all__ = [
    "SAMPLERS",
    "CLD",
    "VP",
    "ImageNoise",
    "analytic_statistics",
    "check",
    "options_of",
    "sample_ddim",
    "sample_ddpm",
    "squared_error",
    "training_loss",
    "variational_bound",
]
