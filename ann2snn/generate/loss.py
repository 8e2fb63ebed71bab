"""The denoising loss of a network on images, at times and with noise that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import VAR_TYPES, require
from ..diffusion.learned_range import prediction
from ..diffusion.process import current_steps, make_process
from ..distributed.runtime import evaluating, seed_from
from ..distributed.world import ALONE, World
from .subject import Sampled

LOSS_BATCH = 64


def mean_loss(net: Sampled, inputs: Tensor, labels: Tensor | None, seed: int, world: World = ALONE) -> float:
    """Mean squared error of the network's predictions, each image noised to a time of its own.

    inputs: what it is trained on, [N, C, H, W], as `given_images` makes it of images. labels: int64 [N] of a
    class-conditional network. Networks that are compared on the same images and seed see the same times and noise. The
    processes of `world` share the batches, and all get the figure.
    Raises UserError for a network on synaptic currents, which predicts no noise of an image.
    """
    require(
        current_steps(net) is None,
        "a network on synaptic currents has no such loss: choose by the score (--search_sigma_rel=score)",
    )
    diffusion = replace(net.diffusion, var_type=VAR_TYPES[0])  # a variance that is told has a loss of its own
    process = make_process(diffusion, net.image_size)
    like = next(net.parameters())
    total = torch.zeros(2, dtype=torch.float64)
    starts: Sequence[int] = range(0, len(inputs), LOSS_BATCH)
    with torch.no_grad(), evaluating(net):
        for start in world.share(starts):
            x_0 = inputs[start : start + LOSS_BATCH].to(like)
            generator = torch.Generator().manual_seed(seed_from(seed, start))
            t = process.draw_times(len(x_0), generator=generator)
            noise = torch.randn(len(x_0), net.in_channels, *x_0.shape[2:], generator=generator).to(like)
            y = None if labels is None else labels[start : start + LOSS_BATCH].to(like.device)
            losses = process.loss(_denoiser(net, y), diffusion, x_0, t.to(like.device), noise, "mse")
            total += torch.stack([losses.double().sum(), losses.new_tensor(float(len(x_0))).double()]).cpu()
    sums = world.sum(total.to(world.device)).cpu()
    return float(sums[0] / sums[1])


def _denoiser(net: Sampled, y: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser f(x, t) that a network is for images of classes y: its prediction, without a variance behind it."""
    constants = () if y is None else (y,)
    return lambda x, t: prediction(net(x, t, *constants), x)
