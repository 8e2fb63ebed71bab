"""Images that resemble given ones: SDEdit (Meng et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import check_number, require
from ..diffusion import VP, check, options_of
from ..diffusion.process import clips
from ..latent import Autoencoder, as_images
from .classes import without_class
from .sampling import Rows, check_generation, run_chain
from .subject import check_edited, given_images, sampling


def edit(
    net: nn.Module,
    images: Tensor,
    strength: float = 0.5,
    *,
    autoencoder: Autoencoder | None = None,
    **settings: Any,
) -> Tensor:
    """Images uint8 [N, C, H, W], diffused over the first `strength` of all diffusion steps and sampled from there.

    Of one image, N copies are N variations: image i has the noise of image i of the seed. strength: above 0 (next to
    nothing is changed) to 1 (next to nothing is kept). settings: fields of `SampleConfig`; DDIM in 50 steps unless
    asked otherwise. `steps` counts the network calls of the part that is left, whatever its length; ddpm visits all of
    it. Without `class_label` the network is told no class. autoencoder: of a network on latents, by default its own;
    their latents are diffused, and what is sampled is decoded.
    Networks of the process "vp"; any sampler but gddim, euler, analytic_dpm. Raises UserError.
    """
    net = check_edited(net, "--start")
    x_0, shown = given_images(net, images, autoencoder), as_images(net, autoencoder)
    strength = check_number(strength, "--strength")
    require(0 < strength <= 1, f"--strength={strength}: use a value above 0, at most 1")
    config = without_class(net, sampling(settings))
    require(
        not config.kind.linear and config.sampler != "analytic_dpm",
        f"--sampler={config.sampler}: cannot start from an image; use ddim, ddpm, ddpm_strided or a solver",
    )
    full_process = VP(net.diffusion)
    process = full_process.first(max(1, round(strength * full_process.diffusion_steps)))
    options = options_of(config)
    check_generation(net, config)
    try:
        check(config.sampler, process, **options)
    except ValueError as error:
        raise type(error)(
            f"--strength={strength:g} leaves {process.diffusion_steps} diffusion steps: {error}"
        ) from None

    def chain(rows: Rows) -> Tensor:
        start = rows.of(x_0)
        t = torch.full((len(start),), process.diffusion_steps - 1, device=start.device)
        x = process.diffuse(start, t, rows.noise())
        hooks = {"noise": rows.noise, "clip": clips(config, net.diffusion), "on_step": rows.on_step}
        return shown(config.kind(rows.denoiser, process, x, **hooks, **options))

    return run_chain(net, config, range(len(x_0)), chain)
