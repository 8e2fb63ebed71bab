"""Ancestral sampling of DDPM (Ho et al., 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...config import LEARNED, require
from ..learned_range import prediction
from ..likelihood import model_log_var
from ..predict import predicted_x0
from ..vp import VP, gather

StepHook = Callable[[int, Tensor], None]


def ddpm_times(process: VP, steps: int | None = None) -> list[int]:
    """Times of the network calls of `sample_ddpm`. Raises UserError for another number of steps."""
    available = process.diffusion_steps
    require(steps in (None, available), f"ancestral sampling takes all {available} steps, not {steps}")
    return list(range(available - 1, -1, -1))


@torch.no_grad()
def sample_ddpm(
    net: Callable[[Tensor, Tensor], Tensor],
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int | None = None,
    clip: bool = True,
    on_step: StepHook | None = None,
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1]. One draw from `noise` per step but the last.

    Always visits every diffusion step (`steps` must be None or `process.diffusion_steps`). `clip` limits the
    predicted x_0 to [−1, 1] before the posterior mean is formed, as the original DDPM does; without it only the final
    image is clipped, as the published conversion code does. Variances follow `var_type`.
    """
    learned, fixed = process.config.var_type == LEARNED, torch.exp(0.5 * process.model_log_var())
    direct_mean = process.config.mean_type == "xprev" and not clip
    for step in ddpm_times(process, steps):
        t = x.new_full((len(x),), step, dtype=torch.long)
        if on_step is not None:
            on_step(step, x)
        output = net(x, t)
        if direct_mean:
            mean = prediction(output, x)
        else:
            x_0 = predicted_x0(process, output, x, t)
            mean = process.posterior_mean(x_0.clamp(-1, 1) if clip else x_0, x, t)
        if step > 0:
            sigma = torch.exp(0.5 * model_log_var(process, output, x, t)) if learned else gather(fixed, t, x)
            mean = mean + sigma * noise()
        x = mean
    return process.in_range(x)
