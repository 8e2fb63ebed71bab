"""The diffusion times that a sampler visits, largest first: whole ones, or real ones between the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...config import check_int, require
from ..vp import VP

# ---- whole times ----------------------------------------------------------------------------------------------------


def uniform_times(diffusion_steps: int, steps: int) -> list[int]:
    """`steps` distinct diffusion times from diffusion_steps − 1 down to 0, evenly spaced (one step: the last time)."""
    if steps == 1:
        return [diffusion_steps - 1]
    grid = torch.linspace(diffusion_steps - 1, 0, steps, dtype=torch.float64)
    return [int(v) for v in torch.floor(grid + 0.5)]


def quadratic_times(diffusion_steps: int, steps: int) -> list[int]:
    """`steps` distinct times from diffusion_steps − 1 down to 0, close to even spacing in √t (one: the last time)."""
    if steps == 1:
        return [diffusion_steps - 1]
    times: list[int] = []
    for root in np.linspace(0, math.sqrt(diffusion_steps - 1), steps):
        times.append(max(math.floor(root**2 + 0.5), times[-1] + 1 if times else 0))
    return times[::-1]


def ddpm_torch_linear_times(diffusion_steps: int, steps: int) -> list[int]:
    """Every k-th time from 0, k = ⌊diffusion_steps/steps⌋: more than `steps` times where that does not divide."""
    return list(range(0, diffusion_steps, diffusion_steps // steps))[::-1]


def ddpm_torch_quadratic_times(diffusion_steps: int, steps: int) -> list[int]:
    """Even spacing in √t from 0 to 0.8·diffusion_steps, rounded half to even, repetitions at the small end kept."""
    times = np.round(np.linspace(0, math.sqrt(0.8 * diffusion_steps), steps) ** 2)
    return [min(int(v), diffusion_steps - 1) for v in times[::-1]]


def sddpm_times(diffusion_steps: int, steps: int) -> list[int]:
    """⌊diffusion_steps − 1 − i·diffusion_steps/steps⌋ for i = 0..steps−1, then 0 if the last is not 0."""
    last, stride = diffusion_steps - 1, diffusion_steps / steps
    times = [max(int(last - stride * i), 0) for i in range(steps)]
    return times if times[-1] == 0 else [*times, 0]


def trailing_times(diffusion_steps: int, steps: int) -> list[int]:
    """Every (diffusion_steps/steps)-th time back from the last, rounded half to even; 0 is among them at full length.

    The first call is at the end of the process whatever `steps`, the last one k − 1 above 0 for a stride of k, as far
    from the image as the others from each other (Lin et al., arXiv 2305.08891, table 2).
    """
    return [round(diffusion_steps * (1 - i / steps)) - 1 for i in range(steps)]


WHOLE_TIMES: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": uniform_times,
    "quadratic": quadratic_times,
    "ddpm_torch_linear": ddpm_torch_linear_times,
    "ddpm_torch_quadratic": ddpm_torch_quadratic_times,
    "sddpm": sddpm_times,
    "trailing": trailing_times,
}


def whole_times(process: VP, steps: int, skip: str = "uniform") -> list[int]:
    """Diffusion times by the name of their spacing, falling to 0 (trailing: near 0; ddpm_torch_quadratic may repeat).

    Raises UserError: more steps than the process has, or an unknown name.
    """
    available = process.diffusion_steps
    require(skip in WHOLE_TIMES, f"--skip_type={skip}: whole diffusion times are {', '.join(WHOLE_TIMES)}")
    steps = check_int(steps, "--sampler_steps")
    require(1 <= steps <= available, f"--sampler_steps={steps}: use 1 to the {available} diffusion steps (--T)")
    return WHOLE_TIMES[skip](available, steps)


# ---- real times -----------------------------------------------------------------------------------------------------


def _uniform(process: VP, intervals: int) -> Sequence[float]:
    return np.linspace(process.log_snr.last, 0, intervals + 1).tolist()


def _quadratic(process: VP, intervals: int) -> Sequence[float]:
    return (np.linspace(math.sqrt(process.log_snr.last), 0, intervals + 1) ** 2).tolist()


def _logsnr(process: VP, intervals: int) -> Sequence[float]:
    curve = process.log_snr
    lambdas = np.linspace(curve(curve.last), curve(0.0), intervals + 1)
    return [curve.last, *(curve.time(float(lam)) for lam in lambdas[1:-1]), 0.0]


REAL_TIMES = {"logsnr": _logsnr, "uniform": _uniform, "quadratic": _quadratic}


def real_times(process: VP, nodes: int, skip: str) -> tuple[float, ...]:
    """`nodes` falling times from diffusion_steps − 1 to 0, evenly spaced in t, in √t or in λ (one: the last time).

    Raises UserError: unknown name, or a process without times between its steps.
    """
    require(skip in REAL_TIMES, f"--skip_type={skip}: times of solvers are {', '.join(REAL_TIMES)}")
    nodes = check_int(nodes, "--sampler_steps")
    require(1 <= nodes <= 100_000, f"--sampler_steps={nodes}: use 1 to 100000")
    last = process.log_snr.last
    return (last,) if nodes == 1 else (last, *REAL_TIMES[skip](process, nodes - 1)[1:-1], 0.0)
