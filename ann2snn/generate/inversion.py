"""From images to the noise that DDIM makes them from, and how well it does."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import SampleConfig, check_limits, require
from ..diffusion import VP
from ..diffusion.samplers import whole_times
from ..diffusion.samplers.call import estimate
from ..latent import Autoencoder, as_images
from .classes import without_class
from .sampling import Given, Rows, check_generation, run_chain, walk
from .subject import OF_CALLS, check_edited, check_sampled, check_settings, given_images


def invert(
    net: nn.Module,
    images: Tensor,
    steps: int = 50,
    *,
    iterations: int = 1,
    skip: str = "uniform",
    autoencoder: Autoencoder | None = None,
    **settings: Any,
) -> Tensor:
    """Noise [N, C', H', W'], float, that deterministic DDIM in `steps` steps makes the images uint8 [N, C, H, W] from.

    Approximately: a step of DDIM from x_t to x_s is undone with the noise predicted at x_t, which is not known yet;
    `iterations` 1 takes the prediction for x_s instead (Song et al., 2021, section 4.3), more repeat it with what came
    out. They end at the exact inverse where the network is smooth and steps are small; a quantized one has jumps.
    The predicted image is not limited to [−1, 1], and must not be on the way back: sample with clip=False.
    autoencoder: of a network on latents, by default its own; the noise is that of the images' latents.
    settings: carry, carry_steps, amp, tf32, class_label, guidance of `SampleConfig`. Networks of the process "vp".
    Raises UserError.
    """
    net = check_edited(net, "--invert")
    x_0 = given_images(net, images, autoencoder)
    iterations = check_limits("invert_iterations", iterations)
    check_settings(settings, "invert", OF_CALLS)
    config = without_class(net, way_back(steps, skip, **settings))
    check_generation(net, config)
    process = VP(net.diffusion)
    times = whole_times(process, config.steps, skip)[::-1]
    alphas_bar = process.alphas_bar.tolist()

    def chain(rows: Rows) -> Tensor:
        x, now = rows.of(x_0), 1.0
        for time in times:
            target = alphas_bar[time]
            guess = x
            for _ in range(iterations):
                _, eps = estimate(rows.denoiser, process, guess, time, clip=False, on_step=None)
                guess = (target / now) ** 0.5 * (x - (1 - now) ** 0.5 * eps) + (1 - target) ** 0.5 * eps
            x, now = guess, target
        return x

    noise = run_chain(net, config, range(len(x_0)), chain)
    why = "the network has diverged" if iterations == 1 else "the iterations may diverge; use fewer"
    require(bool(torch.isfinite(noise).all()), f"--invert: the noise is not finite: {why}")
    return noise


class PixelError(NamedTuple):
    """rmse: of pixels in 0..255, over all images. psnr: of 255, in dB; infinite where nothing differs."""

    rmse: float
    psnr: float


class LatentError(NamedTuple):
    """What a round trip through an autoencoder's latents has lost where.

    decoded: images uint8 [N, C, H, W] that were encoded and decoded, without diffusion. autoencoder: their error.
    diffusion: how far the round trip's images are from `decoded`. rmse: of latents, whose variance is about 1.
    """

    decoded: Tensor
    autoencoder: PixelError
    diffusion: PixelError
    rmse: float


class RoundTrip(NamedTuple):
    """Images from their inverted noise. images: uint8 [N, C, H, W]. noise: [N, C', H', W'].

    rmse, psnr: see `PixelError`. latent: of networks on latents, None of those on images.
    """

    images: Tensor
    noise: Tensor
    rmse: float
    psnr: float
    latent: LatentError | None = None


def round_trip(
    net: nn.Module,
    images: Tensor,
    steps: int = 50,
    *,
    iterations: int = 1,
    skip: str = "uniform",
    autoencoder: Autoencoder | None = None,
    **settings: Any,
) -> RoundTrip:
    """`invert` the images, and sample from that noise. Arguments and errors as `invert`."""
    noise = invert(net, images, steps, iterations=iterations, skip=skip, autoencoder=autoencoder, **settings)
    sampled = check_sampled(net)
    config = without_class(sampled, way_back(steps, skip, **settings))
    ends = walk(sampled, config, range(len(images)), Given(x_T=noise), shown=lambda end: end)
    device, shown = next(sampled.parameters()).device, as_images(sampled, autoencoder)
    remade = shown(ends.to(device)).cpu()
    latent = None
    if sampled.diffusion.autoencoder:
        latents = given_images(sampled, images, autoencoder)
        decoded = shown(latents.to(device)).cpu()
        rmse = float((ends.double() - latents.double()).square().mean().sqrt())
        latent = LatentError(decoded, pixel_error(decoded, images), pixel_error(remade, decoded), rmse)
    return RoundTrip(remade, noise, *pixel_error(remade, images), latent)


def pixel_error(made: Tensor, images: Tensor) -> PixelError:
    """Of images against others, both uint8 of one shape."""
    mse = float((made.double() - images.double()).square().mean())
    return PixelError(mse**0.5, 10 * math.log10(255**2 / mse) if mse else math.inf)


def way_back(steps: int, skip: str = "uniform", **settings: Any) -> SampleConfig:
    """How the noise of `invert` is sampled."""
    return SampleConfig("ddim", steps, eta=0.0, clip=False, skip=skip, **settings)
