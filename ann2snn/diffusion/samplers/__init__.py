"""Samplers: plain functions that share one prefix, f(net, process, x_T, *, noise, steps, clip, on_step, …)."""

from .ancestral import ddpm_times, sample_ddpm
from .currents import sample_currents
from .ddim import ddim_times, sample_ddim
from .dpm_solver import dpm_solver_times, sample_dpm_solver
from .dpmpp import sample_dpmpp, sample_dpmpp_sde
from .dpmpp_singlestep import sample_dpmpp_singlestep
from .grids import real_times, uniform_times, whole_times
from .heun import heun_times, sample_heun
from .linear import euler_times, gddim_times, run_euler, run_gddim
from .pndm import pndm_times, sample_pndm
from .registry import SAMPLERS, Sampler, check, options_of
from .strided import analytic_statistics, reverse_step, sample_analytic_dpm, sample_ddpm_strided
from .unipc import sample_unipc

__all__ = [
    "SAMPLERS",
    "Sampler",
    "analytic_statistics",
    "check",
    "ddim_times",
    "ddpm_times",
    "dpm_solver_times",
    "heun_times",
    "euler_times",
    "gddim_times",
    "options_of",
    "pndm_times",
    "real_times",
    "reverse_step",
    "run_euler",
    "run_gddim",
    "sample_analytic_dpm",
    "sample_currents",
    "sample_ddim",
    "sample_ddpm",
    "sample_ddpm_strided",
    "sample_dpm_solver",
    "sample_dpmpp",
    "sample_dpmpp_sde",
    "sample_dpmpp_singlestep",
    "sample_heun",
    "sample_pndm",
    "sample_unipc",
    "uniform_times",
    "whole_times",
]
