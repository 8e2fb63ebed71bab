"""From a denoiser to 8-bit images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .config import SampleConfig
from .data import to_uint8
from .diffusion import SAMPLERS, VP, ImageNoise


def generate(
    net: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Images `indices` of seed `config.seed`, uint8 [len(indices), C, H, W]; which batch they are in does not matter.

    net: any denoiser that knows its `in_channels`, `image_size` and `diffusion` (ANN or SNN), in eval mode.
    """
    like = next(net.parameters())
    shape = (net.in_channels, net.image_size, net.image_size)
    noise = ImageNoise(config.seed, indices, shape, like.device, like.dtype)
    options = {"eta": config.eta, "steps": config.steps} if config.sampler == "ddim" else {}
    process = VP(net.diffusion)
    x_0 = SAMPLERS[config.sampler](net, process, noise(), noise=noise, clip=config.clip, on_step=on_step, **options)
    return to_uint8(x_0).cpu()


def generate_batches(
    net: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    batch_size: int,
    *,
    label: str = "sampling",
    progress: bool = True,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (indices of the batch, its images) until all `indices` are done, with one progress bar over calls."""
    calls = config.calls(net.diffusion)
    with tqdm(total=len(indices) * calls, desc=label, unit="call", disable=not progress, leave=False) as bar:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            images = generate(net, config, batch, on_step=lambda step, x: bar.update(len(x)))
            yield batch, images


def generate_all(net: nn.Module, config: SampleConfig, n: int, batch_size: int) -> Tensor:
    """Images 0..n−1 in one tensor, uint8 [n, C, H, W]."""
    parts = [images for _, images in generate_batches(net, config, range(n), batch_size)]
    return torch.cat(parts)
