"""Ancestral sampling on some of the diffusion steps: DDPM's own variance, and the optimal one of Analytic-DPM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import LEARNED, require
from ...errors import UserError
from ..learned_range import learned_log_var, log_of
from ..predict import predicted_eps, predicted_x0
from ..vp import VP
from .call import Denoiser, StepHook, answer, estimate
from .grids import whole_times

# Bao et al., 2022, section 4: noise of the last step shows less than 2/255·y on average; y = 2, the authors' choice.
LAST_VARIANCE = (2 * 2 / 255 * math.sqrt(math.pi / 2)) ** 2


@dataclass(frozen=True)
class ReverseStep:
    """q(x_s | x_t, x_0) for s < t (DDPM eq. 7, with ᾱ_t/ᾱ_s for α_t): mean image·x_0 + state·x_t, variance `small`.

    `large` is the variance of q(x_t | x_s), DDPM's other choice.
    """

    image: float
    state: float
    small: float
    large: float


def reverse_step(now: float, target: float) -> ReverseStep:
    """The step from ᾱ_t = now to ᾱ_s = target."""
    large = 1 - now / target
    shrink = (1 - target) / (1 - now)
    return ReverseStep(target**0.5 * large / (1 - now), (now / target) ** 0.5 * shrink, large * shrink, large)


@torch.no_grad()
def sample_ddpm_strided(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    skip: str = "uniform",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls: DDPM on the process that those times make.

    Variances follow `var_type`; what a network tells is between the bounds of these steps. One draw from `noise` per
    step but the last. On all times it is `sample_ddpm`.
    """
    var_type = process.config.var_type

    def variance(i: int, step: ReverseStep, output: Tensor) -> Tensor | float:
        if var_type == LEARNED:
            return torch.exp(learned_log_var(output, x, log_of(step.small), log_of(step.large)))
        return step.large if var_type == "fixedlarge" else step.small

    times = whole_times(process, steps, skip)
    return _descend(net, process, x, times, noise, clip, on_step, variance)


def analytic_times(process: VP, steps: int, skip: str = "uniform", statistics: Tensor | None = None) -> list[int]:
    """Times of the network calls of `sample_analytic_dpm`. Raises UserError where `statistics` do not cover them."""
    times = whole_times(process, steps, skip)
    if statistics is None:
        raise UserError("--sampler=analytic_dpm: needs the network's statistics (analytic_statistics)")
    available = process.diffusion_steps
    require(
        tuple(statistics.shape) == (available,),
        f"noise statistics of shape {list(statistics.shape)}: the process has {available} diffusion steps",
    )
    missing = [t for t in times[:-1] if not 0 <= float(statistics[t]) < math.inf]
    require(not missing, f"noise statistics lack {len(missing)} of the sampler's times: {missing[:5]}")
    return times


@torch.no_grad()
def sample_analytic_dpm(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int,
    clip: bool = True,
    on_step: StepHook | None = None,
    skip: str = "uniform",
    statistics: Tensor | None = None,
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls with the optimal variance (Bao et al., 2022).

    That is E Var q(x_s | x_t), over data and noise: the posterior variance plus image²·(the mean variance of x_0 given
    x_t), which `statistics` [diffusion_steps], Γ_t = E‖ε̂‖²/d, says: (1−ᾱ)/ᾱ·(1−Γ). For data in [−1, 1] it is between
    0 and 1 (theorem 2). With `clip`, the last noisy step also stays below LAST_VARIANCE.
    """
    times = analytic_times(process, steps, skip, statistics)
    assert statistics is not None  # `analytic_times` has asked for them
    gamma, alphas_bar = statistics.tolist(), process.alphas_bar.tolist()

    def variance(i: int, step: ReverseStep, output: Tensor) -> float:
        now = alphas_bar[times[i]]
        # At ᾱ = 0 nothing is known of x_0: the bound.
        spread = min(max((1 - now) / now * (1 - gamma[times[i]]), 0.0), 1.0) if now > 0 else 1.0
        total = min(step.small + step.image**2 * spread, 1.0)
        return min(total, LAST_VARIANCE) if clip and times[i + 1] == 0 else total

    return _descend(net, process, x, times, noise, clip, on_step, variance)


@torch.no_grad()
def analytic_statistics(
    net: Denoiser,
    process: VP,
    batches: Iterable[Tensor],
    times: Sequence[int],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Γ_t = E‖ε̂(x_t, t)‖²/d over data and noise (Bao et al., 2022, eq. 8): float64 [diffusion_steps], nan elsewhere.

    batches: images [N, C, H, W] in [−1, 1]; each is diffused to every one of `times`. Noise is drawn on the CPU in
    float32. Raises UserError: no images, or predictions that are not finite.
    """
    totals, elements = torch.zeros(process.diffusion_steps, dtype=torch.float64), 0
    for x_0 in batches:
        for time in times:
            draw = torch.randn(x_0.shape, generator=generator).to(x_0)
            t = torch.full((len(x_0),), time, dtype=torch.long, device=x_0.device)
            x_t = process.diffuse(x_0, t, draw)
            eps = predicted_eps(process, net(x_t, t), x_t, t)
            totals[time] += float(eps.double().square().sum())
        elements += x_0.numel()
    require(elements > 0, "noise statistics: there are no images")
    result = torch.full_like(totals, torch.nan)
    result[list(times)] = totals[list(times)] / elements
    bad = [time for time in times if not math.isfinite(result[time])]
    require(not bad, f"noise statistics: predictions at times {bad[:5]} are not finite: the network has diverged")
    return result


def _descend(
    net: Denoiser,
    process: VP,
    x: Tensor,
    times: Sequence[int],
    noise: Callable[[], Tensor],
    clip: bool,
    on_step: StepHook | None,
    variance: Callable[[int, ReverseStep, Tensor], Tensor | float],
) -> Tensor:
    """From x_T through the posterior means at `times`; variance(i, step, output) is that of the step from times[i]."""
    alphas_bar = process.alphas_bar.tolist()
    for i, (time, following) in enumerate(zip(times, times[1:], strict=False)):
        output, t = answer(net, x, time, on_step)
        x_0 = predicted_x0(process, output, x, t)
        x_0 = x_0.clamp(-1, 1) if clip else x_0
        step = reverse_step(alphas_bar[time], alphas_bar[following])
        x = step.image * x_0 + step.state * x
        x = x + variance(i, step, output) ** 0.5 * noise()
    return process.in_range(estimate(net, process, x, times[-1], clip, on_step)[0])
