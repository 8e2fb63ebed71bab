"""Diffusion processes, what the network predicts, losses and samplers."""

from .loss import squared_error
from .noise import ImageNoise
from .samplers import SAMPLERS, sample_ddim, sample_ddpm
from .vp import VP

__all__ = ["SAMPLERS", "VP", "ImageNoise", "sample_ddim", "sample_ddpm", "squared_error"]
