"""Parts of images made anew: RePaint (Lugmayr et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import SampleConfig, check_limits, require
from ..diffusion import VP
from ..diffusion.process import clips, decoded_size
from ..diffusion.samplers import reverse_step, whole_times
from ..diffusion.samplers.call import estimate
from ..latent import Autoencoder, as_images
from .classes import without_class
from .sampling import Rows, check_generation, run_chain
from .subject import OF_CALLS, Sampled, check_edited, check_images, check_settings, given_images


def inpaint(
    net: nn.Module,
    images: Tensor,
    mask: Tensor,
    steps: int = 50,
    *,
    resamples: int = 10,
    autoencoder: Autoencoder | None = None,
    **settings: Any,
) -> Tensor:
    """Images uint8 [N, C, H, W] with the pixels in `mask`, bool [H, W], made anew; the others stay as they are.

    Algorithm 1 of RePaint on `steps` of the diffusion steps: after each the known pixels are those of the image,
    diffused as far; `resamples` times a step is taken, and undone with fresh noise in between, so that both parts come
    to fit. Variances are the posterior's: the large ones would leave noise behind where steps are few. Of one image, N
    copies are N variations. (steps − 1)·resamples + 1 network calls. settings: seed, clip, skip, carry, carry_steps,
    amp, tf32, class_label, guidance of `SampleConfig`. autoencoder: of a network on latents, by default its own; a
    latent is known where all of its pixels are. The encoder sees the nearest known pixel in the place of each pixel of
    `mask`, so nothing of these enters, and the known pixels are put back into what is decoded. Networks of the process
    "vp". Raises UserError.
    """
    net = check_edited(net, "--inpaint")
    check_images(net, images)
    size = decoded_size(net)
    require(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == size,
        f"mask: expected a bool tensor {list(size)}, True where the image is to be made anew",
    )
    made = network_mask(net, mask)
    x_0, shown = given_images(net, extended(images, mask), autoencoder), as_images(net, autoencoder)
    resamples = check_limits("resamples", resamples)
    check_settings(settings, "inpaint", ("seed", "clip", "skip", *OF_CALLS))
    config = without_class(net, SampleConfig("ddpm_strided", steps, **settings))
    check_generation(net, config)
    process = VP(net.diffusion)
    times, clip = whole_times(process, config.steps, config.skip), clips(config, net.diffusion)

    def chain(rows: Rows) -> Tensor:
        image, unknown = rows.of(x_0), made.to(rows.noise.device)
        x = rows.noise()
        for time, following in zip(times, times[1:], strict=False):
            for climbs_left in reversed(range(resamples)):
                predicted, _ = estimate(rows.denoiser, process, x, time, clip, rows.on_step)
                below = one_step(process, x, predicted, image, unknown, (time, following), rows.noise)
                x = below if not climbs_left else climb(process, below, (time, following), rows.noise())
        predicted, _ = estimate(rows.denoiser, process, x, times[-1], clip, rows.on_step)
        return shown(torch.where(unknown, predicted, image))

    return torch.where(mask.cpu(), run_chain(net, config, range(len(x_0)), chain), images.cpu())


def network_mask(net: Sampled, mask: Tensor) -> Tensor:
    """Bool [h, w] of what the network reads: where any pixel of `mask`, bool [H, W], is to be made anew.

    Raises UserError where that is everywhere, though there are known pixels.
    """
    factor = net.diffusion.downscale
    made = F.max_pool2d(mask[None, None].float(), factor)[0, 0] > 0
    message = f"--inpaint: the mask leaves no latent known; leave whole {factor}x{factor} blocks of pixels as they are"
    require(bool(mask.all()) or not bool(made.all()), message)
    return made


def extended(images: Tensor, mask: Tensor) -> Tensor:
    """Images [N, C, H, W] with the nearest known pixel in the place of each in `mask`; as they are where none is."""
    if mask.all():
        return images
    row, column = distance_transform_edt(mask.cpu().numpy(), return_distances=False, return_indices=True)
    return images[..., torch.from_numpy(row).long(), torch.from_numpy(column).long()]


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
