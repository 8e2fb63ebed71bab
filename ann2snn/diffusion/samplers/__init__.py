"""Samplers: plain functions that share one prefix, f(net, process, x_T, *, noise, steps, clip, on_step)."""

from .ancestral import sample_ddpm
from .ddim import sample_ddim, uniform_times

SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim}

__all__ = ["SAMPLERS", "sample_ddim", "sample_ddpm", "uniform_times"]
