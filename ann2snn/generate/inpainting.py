"""Parts of images made anew: RePaint (Lugmayr et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import SampleConfig, check_limits, require
from ..data import to_uint8
from ..diffusion import VP
from ..diffusion.process import size_of
from ..diffusion.samplers import reverse_step, whole_times
from ..diffusion.samplers.call import estimate
from .classes import without_class
from .sampling import Rows, check_generation, run_chain
from .subject import OF_CALLS, check_edited, check_settings, given_images


def inpaint(
    net: nn.Module, images: Tensor, mask: Tensor, steps: int = 50, *, resamples: int = 10, **settings: Any
) -> Tensor:
    """Images uint8 [N, C, H, W] with the pixels in `mask`, bool [H, W], made anew; the others stay as they are.

    Algorithm 1 of RePaint on `steps` of the diffusion steps: after each the known pixels are those of the image,
    diffused as far; `resamples` times a step is taken, and undone with fresh noise in between, so that both parts come
    to fit. Variances are the posterior's: the large ones would leave noise behind where steps are few. Of one image, N
    copies are N variations. (steps − 1)·resamples + 1 network calls. settings: seed, clip, skip, carry, carry_steps,
    amp, tf32, class_label, guidance of `SampleConfig`. Networks of the process "vp" on images. Raises UserError.
    """
    net = check_edited(net, "--inpaint")
    x_0 = given_images(net, images)
    size = size_of(net)
    require(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == size,
        f"mask: expected a bool tensor {list(size)}, True where the image is to be made anew",
    )
    resamples = check_limits("resamples", resamples)
    check_settings(settings, "inpaint", ("seed", "clip", "skip", *OF_CALLS))
    config = without_class(net, SampleConfig("ddpm_strided", steps, **settings))
    check_generation(net, config)
    process = VP(net.diffusion)
    times = whole_times(process, config.steps, config.skip)

    def chain(rows: Rows) -> Tensor:
        image, made = rows.of(x_0), mask.to(rows.noise.device)
        x = rows.noise()
        for time, following in zip(times, times[1:], strict=False):
            for climbs_left in reversed(range(resamples)):
                predicted, _ = estimate(rows.denoiser, process, x, time, config.clip, rows.on_step)
                below = one_step(process, x, predicted, image, made, (time, following), rows.noise)
                x = below if not climbs_left else climb(process, below, (time, following), rows.noise())
        predicted, _ = estimate(rows.denoiser, process, x, times[-1], config.clip, rows.on_step)
        return to_uint8(torch.where(made, predicted, image))

    return run_chain(net, config, range(len(x_0)), chain)


def one_step(
    process: VP, x: Tensor, predicted: Tensor, image: Tensor, made: Tensor, times: tuple[int, int], noise
) -> Tensor:
    """x from times[0] to times[1]: by DDPM's step where `made`, elsewhere the image, diffused; two draws of `noise`."""
    source, target = (float(process.alphas_bar[time]) for time in times)
    step = reverse_step(source, target)
    known = target**0.5 * image + (1 - target) ** 0.5 * noise()
    unknown = step.image * predicted + step.state * x + step.small**0.5 * noise()
    return torch.where(made, unknown, known)


def climb(process: VP, below: Tensor, times: tuple[int, int], noise: Tensor) -> Tensor:
    """Back from times[1] to times[0]: q(x_t | x_s)."""
    source, target = (float(process.alphas_bar[time]) for time in times)
    kept = source / target
    return kept**0.5 * below + (1 - kept) ** 0.5 * noise
