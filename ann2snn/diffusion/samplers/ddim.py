"""DDIM (Song et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..predict import eps_from_x0, predicted_x0
from ..vp import VP
from .ancestral import StepHook


def uniform_times(diffusion_steps: int, steps: int) -> list[int]:
    """`steps` distinct diffusion times from diffusion_steps − 1 down to 0, evenly spaced (one step: the last time)."""
    if steps == 1:
        return [diffusion_steps - 1]
    grid = torch.linspace(diffusion_steps - 1, 0, steps, dtype=torch.float64)
    return [int(v) for v in torch.floor(grid + 0.5)]


@torch.no_grad()
def sample_ddim(
    net: Callable[[Tensor, Tensor], Tensor],
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int | None = 50,
    eta: float = 0.0,
    clip: bool = True,
    on_step: StepHook | None = None,
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls (eq. 12 with σ of eq. 16; eta = 0 is deterministic).

    `clip` limits the predicted x_0 to [−1, 1] and recomputes ε to match. `noise` is drawn once per step but the last,
    and not at all when eta = 0.
    """
    times = uniform_times(process.diffusion_steps, steps or process.diffusion_steps)
    alphas_bar = process.alphas_bar.tolist()
    for index, step in enumerate(times):
        t = x.new_full((len(x),), step, dtype=torch.long)
        if on_step is not None:
            on_step(step, x)
        output = net(x, t)
        x_0 = predicted_x0(process, output, x, t)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        last = index == len(times) - 1
        if last:
            x = x_0
            break
        eps = output if process.config.mean_type == "epsilon" and not clip else eps_from_x0(process, x_0, x, t)
        now, target = alphas_bar[step], alphas_bar[times[index + 1]]
        sigma = eta * ((1 - target) / (1 - now) * (1 - now / target)) ** 0.5
        x = target**0.5 * x_0 + (1 - target - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise()
    return x.clamp(-1, 1)
