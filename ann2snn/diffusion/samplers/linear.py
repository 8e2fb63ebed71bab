"""gDDIM and Euler-Maruyama by the names that all samplers have for their settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..gddim import sample_euler, sample_gddim
from ..gddim_coefficients import check_options, intervals_for, time_grid
from ..linear_process import LinearProcess
from .call import Denoiser


def run_gddim(net: Denoiser, process: LinearProcess, x: Tensor, **settings: Any) -> Tensor:
    """`sample_gddim` from standard normal noise x, with eta for lam and grid_power for power."""
    return sample_gddim(net, process, process.prior(x), **_renamed(process, settings))


def run_euler(net: Denoiser, process: LinearProcess, x: Tensor, **settings: Any) -> Tensor:
    """`sample_euler` from standard normal noise x, with eta for lam and grid_power for power."""
    return sample_euler(net, process, process.prior(x), **_renamed(process, settings))


def _renamed(process: LinearProcess, settings: dict[str, Any]) -> dict[str, Any]:
    names = {"eta": "lam", "grid_power": "power"}
    renamed = {names.get(name, name): value for name, value in settings.items()}
    return renamed | {"denoise": settings.get("denoise", False) and process.can_denoise}


def gddim_times(
    process: LinearProcess,
    steps: int,
    eta: float = 0.0,
    denoise: bool = False,
    grid_power: float = 2.0,
    factor: str = "R",
    order: int = 2,
    corrector: str = "none",
) -> list[float]:
    """Times of the network calls of `run_gddim`. Raises UserError for options that do not fit the process."""
    denoise = denoise and process.can_denoise
    intervals = intervals_for(steps, corrector, denoise)
    grid = time_grid(process, intervals, grid_power)
    check_options(process, intervals, order, factor, corrector, eta)
    times = [grid[0]]
    for time in grid[1:-1]:  # with "pece" once to correct the step that ends there, and once to predict the next
        times += [time] * (2 if corrector == "pece" else 1)
    return [*times, grid[-1]] if denoise else times


def euler_times(process: LinearProcess, steps: int, **options: Any) -> list[float]:
    """Times of the network calls of `run_euler`, which is stochastic at any eta. Raises UserError as `gddim_times`."""
    return gddim_times(process, steps, order=0, **options)
