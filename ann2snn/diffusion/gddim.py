"""Samplers for linear SDEs: gDDIM (Zhang, Tao, Chen, 2023) and Euler-Maruyama.

They share one prefix, f(net, process, state, *, noise, steps, grid, …, on_step), and return data [N, C, *S]. `net` is
called as net(network_input [N, *S], t [N]) with the process's own time; see `with_label_scale`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import require
from .gddim_coefficients import Coefficients, check_grid, check_options, gddim_coefficients, intervals_for, time_grid
from .linear_process import LinearProcess

Denoiser = Callable[[Tensor, Tensor], Tensor]
StepHook = Callable[[float, Tensor], None]


def with_label_scale(net: Denoiser, scale: float = 999.0) -> Denoiser:
    """`net` called with scale·t: the published networks of CLD and blur diffusion read times in [0, 1] as 0 to 999."""
    return lambda x, t: net(x, scale * t)


@torch.no_grad()
def sample_gddim(
    net: Denoiser,
    process: LinearProcess,
    state: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    steps: int | None = None,
    grid: Sequence[float] | None = None,
    power: float = 2.0,
    order: int = 2,
    factor: str = "R",
    corrector: str = "none",
    lam: float = 0.0,
    denoise: bool = False,
    last_noise: bool = False,
    clip: bool = False,
    on_step: StepHook | None = None,
) -> Tensor:
    """A state at the first time of the grid → data [N, C, *S].

    Either `steps`, the exact number of network calls (the grid is then `time_grid` with `power`), or `grid` itself.
    order, factor, corrector, lam: see `gddim_coefficients`; lam = 0 is deterministic, lam = 1 the ancestral sampler.
    `noise` is drawn once a step if lam > 0, but for the last step only with `last_noise`. `denoise` ends with
    `process.denoise`, one more call. `clip` limits the result to [−1, 1]. Raises UserError before the first call.
    """
    grid = _chosen_grid(process, steps, grid, power, corrector, denoise)
    process.check_state(state)
    require(lam == 0 or noise is not None, f"lambda={lam}: a stochastic sampler needs a noise source")
    coefficients = gddim_coefficients(process, grid, order, factor, corrector, lam)
    state = _integrate(net, process, state, coefficients, corrector, noise, last_noise, on_step)
    return _finish(net, process, state, grid[-1], factor, denoise, clip)


@torch.no_grad()
def sample_euler(
    net: Denoiser,
    process: LinearProcess,
    state: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    steps: int | None = None,
    grid: Sequence[float] | None = None,
    power: float = 2.0,
    factor: str = "R",
    lam: float = 1.0,
    denoise: bool = False,
    clip: bool = False,
    on_step: StepHook | None = None,
) -> Tensor:
    """Euler-Maruyama on du = [F·u − (1+λ²)/2·GGᵀ·score] dt + λG dw; lam = 0 is Euler's rule on the probability flow.

    Arguments as in `sample_gddim`. No noise is added in the last step.
    """
    grid = _chosen_grid(process, steps, grid, power, "none", denoise)
    process.check_state(state)
    check_options(process, len(grid) - 1, 0, factor, "none", 0.0)
    require(0 <= lam <= 10, f"lambda={lam}: use 0 (deterministic) to 10")
    require(lam == 0 or noise is not None, f"lambda={lam}: a stochastic sampler needs a noise source")
    for i, (now, target) in enumerate(zip(grid, grid[1:], strict=False)):
        if on_step is not None:
            on_step(now, state)
        step = target - now
        diffusion = process.diffusion(now)
        inverse = np.linalg.inv(process.factor(now, factor))
        pull = (1 + lam**2) / 2 * diffusion @ np.swapaxes(inverse, -1, -2)
        eps = _evaluate(net, process, state, now)
        state = process.apply(np.eye(process.n) + step * process.drift(now), state) + process.apply(step * pull, eps)
        if lam > 0 and noise is not None and i < len(grid) - 2:
            # GGᵀ is diagonal in every process here, so its root is taken element by element.
            state = state + process.apply(lam * np.sqrt(-step * diffusion), noise())
    return _finish(net, process, state, grid[-1], factor, denoise, clip)


def _chosen_grid(
    process: LinearProcess,
    steps: int | None,
    grid: Sequence[float] | None,
    power: float,
    corrector: str,
    denoise: bool,
) -> tuple[float, ...]:
    require((steps is None) != (grid is None), "give either the number of steps or a time grid")
    require(not denoise or process.can_denoise, f"denoise: {type(process).__name__} has no final denoising step")
    if grid is not None:
        return check_grid(process, grid)
    assert steps is not None  # the first requirement
    return time_grid(process, intervals_for(steps, corrector, denoise), power)


def _evaluate(net: Denoiser, process: LinearProcess, state: Tensor, t: float) -> Tensor:
    """The noise prediction at `state`, in the state's coordinates."""
    return process.from_network(net(process.network_input(state), state.new_full((len(state),), t)))


def _integrate(
    net: Denoiser,
    process: LinearProcess,
    state: Tensor,
    coefficients: Coefficients,
    corrector: str,
    noise: Callable[[], Tensor] | None,
    last_noise: bool,
    on_step: StepHook | None,
) -> Tensor:
    """Predict; where there is a corrector, evaluate ahead and repeat the step ("pec"), and evaluate again ("pece")."""
    grid, last = coefficients.grid, len(coefficients.grid) - 2
    history: deque[Tensor] = deque(maxlen=max(map(len, coefficients.predictor)))
    eps = None
    for i in range(last + 1):
        if on_step is not None:
            on_step(grid[i], state)
        history.appendleft(_evaluate(net, process, state, grid[i]) if eps is None else eps)
        eps = None
        carried = process.apply(coefficients.transitions[i], state)
        state = _combine(process, carried, coefficients.predictor[i], history)
        if coefficients.corrector[i]:
            ahead = _evaluate(net, process, state, grid[i + 1])
            state = _combine(process, carried, coefficients.corrector[i], [ahead, *history])
            eps = ahead if corrector == "pec" else None
        if coefficients.noise is not None and noise is not None and (i < last or last_noise):
            state = state + process.apply(coefficients.noise[i], noise())
    return state


def _combine(
    process: LinearProcess, carried: Tensor, matrices: Sequence[np.ndarray], predictions: Sequence[Tensor]
) -> Tensor:
    """Ψ·u + Σ_j C_j·ε_j."""
    for matrix, eps in zip(matrices, predictions, strict=True):
        carried = carried + process.apply(matrix, eps)
    return carried


def _finish(
    net: Denoiser, process: LinearProcess, state: Tensor, t: float, factor: str, denoise: bool, clip: bool
) -> Tensor:
    if denoise:
        state = process.denoise(state, _evaluate(net, process, state, t), t, factor)
    x = process.data(state)
    return x.clamp(-1, 1) if clip else x
