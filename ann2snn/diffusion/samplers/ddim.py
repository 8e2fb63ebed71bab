"""DDIM (Song et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...config import DDIM_EPSILONS, require
from ..vp import VP
from .call import Denoiser, StepHook, estimate
from .grids import whole_times


def ddim_times(
    process: VP,
    steps: int | None = 50,
    eta: float = 0.0,
    skip: str = "uniform",
    denoise: bool = True,
    ddim_epsilon: str = "recomputed",
) -> list[int]:
    """Times of the network calls of `sample_ddim`. Raises UserError for options that do not fit the process."""
    check_epsilon(ddim_epsilon)
    times = _states(process, steps, eta, skip, denoise)
    return times if denoise else times[:-1]


def check_epsilon(name: str) -> None:
    require(name in DDIM_EPSILONS, f"--ddim_epsilon={name}: use {' or '.join(DDIM_EPSILONS)}")


def _states(process: VP, steps: int | None, eta: float, skip: str, denoise: bool) -> list[int]:
    require(0 <= eta <= 1, f"--eta={eta}: use 0 (deterministic) to 1")
    times = whole_times(process, process.diffusion_steps if steps is None else steps, skip)
    require(denoise or len(times) >= 2, f"--denoise=False: {len(times)} sampler step would leave pure noise")
    return times


@torch.no_grad()
def sample_ddim(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor],
    steps: int | None = 50,
    eta: float = 0.0,
    clip: bool = True,
    on_step: StepHook | None = None,
    skip: str = "uniform",
    denoise: bool = True,
    ddim_epsilon: str = "recomputed",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1] in `steps` network calls (eq. 12 with σ of eq. 16; eta = 0 is deterministic).

    `clip` limits the predicted x_0 to [−1, 1]; ε is then recomputed to match, or stays the network's own with
    ddim_epsilon="network", as in the published code of SDDPM and SDM. `noise` is drawn once per step but the last,
    and not at all when eta = 0. `skip` names the times, see `whole_times`. Without `denoise` the result is the state
    at the last time, not limited to [−1, 1], and the call there is saved: SDDPM's DDIM (skip="sddpm") ends so.
    Raises UserError before the first call.
    """
    check_epsilon(ddim_epsilon)
    times = _states(process, steps, eta, skip, denoise)
    alphas_bar = process.alphas_bar.tolist()
    for step, following in zip(times, times[1:], strict=False):
        x_0, eps = estimate(net, process, x, step, clip, on_step, keep_eps=ddim_epsilon == "network")
        now, target = alphas_bar[step], alphas_bar[following]
        sigma = eta * ((1 - target) / (1 - now) * (1 - now / target)) ** 0.5
        x = target**0.5 * x_0 + (1 - target - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise()
    if not denoise:
        return x
    return process.in_range(estimate(net, process, x, times[-1], clip, on_step)[0])
