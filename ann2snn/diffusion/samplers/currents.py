"""The sampler of FSDDIM (Watanabe et al., arXiv 2312.01742): deterministic DDIM on synaptic currents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...config import require
from ...nets.direct import mean_over_time, over_time
from ..predict import predicted_x0
from ..synaptic import ddim_coefficients
from ..vp import VP
from .call import Denoiser, StepHook
from .grids import whole_times


def current_times(
    process: VP, steps: int | None = None, skip: str = "uniform", spike_steps: int | None = None
) -> list[int]:
    """Times of the network calls of `sample_currents`. Raises UserError for options that do not fit the process."""
    require(spike_steps is not None, "--sampler=fsddim: needs a network on synaptic currents (--arch=fsddim)")
    return whole_times(process, process.diffusion_steps if steps is None else steps, skip)


@torch.no_grad()
def sample_currents(
    net: Denoiser,
    process: VP,
    x: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    spike_steps: int,
    steps: int | None = None,
    clip: bool = False,
    on_step: StepHook | None = None,
    skip: str = "uniform",
) -> Tensor:
    """x_T [N, C, H, W] → x_0 in [−1, 1]: DDIM's step on each of the spike_steps·N currents alone, decoded at the end.

    net: currents [L·N, C, H, W], time outermost, t [N] → currents. `steps` None is the published sampler, which visits
    every diffusion step. `noise` is never drawn. There is no `clip`: a current is not an image, and the step between
    two networks is linear, so that it needs no neurons. `on_step` sees the image that the currents stand for.
    Raises UserError before the first call.
    """
    require(not clip, "--clip_x0: --sampler=fsddim does not clip: its states are currents, not images")
    times = current_times(process, steps, skip, spike_steps)
    alphas_bar = torch.cat([process.alphas_bar, torch.ones(1, dtype=torch.float64)])  # the last: of the image, at −1
    currents = over_time(x, spike_steps)
    for step, following in zip(times, [*times[1:], -1], strict=True):
        if on_step is not None:
            on_step(step, mean_over_time(currents, spike_steps))
        t = torch.full((len(x),), step, dtype=torch.long, device=x.device)
        x_0 = predicted_x0(process, net(currents, t), currents, t.repeat(spike_steps))
        of_x_0, of_x = ddim_coefficients(alphas_bar[step], alphas_bar[following])
        currents = float(of_x_0) * x_0 + float(of_x) * currents
    return mean_over_time(currents, spike_steps).clamp(-1, 1)
