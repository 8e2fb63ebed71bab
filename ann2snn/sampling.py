"""From a denoiser to 8-bit images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .config import SampleConfig
from .data import to_uint8
from .diffusion import SAMPLERS, VP, ImageNoise
from .world import ALONE, World


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
    if len(indices) == 1:
        # A single image takes other convolution routines than a batch, which round differently; give it company.
        first = None if on_step is None else lambda step, x: on_step(step, x[:1])
        return generate(net, config, [*indices, *indices], on_step=first)[:1]
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
    world: World = ALONE,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (indices of the batch, its images) until all `indices` are done, with one progress bar over calls.

    The processes of `world` share the batches, so each yields its own; no image depends on how many they are.
    """
    calls = config.calls(net.diffusion)
    size = min(batch_size, max(1, -(-len(indices) // world.size)))  # small jobs keep everybody busy, too
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    with world.progress(len(indices) * calls, label, "call", progress) as bar:
        for batch in world.share(batches):
            yield batch, generate(net, config, batch, on_step=lambda step, x: bar.update(len(x)))


def generate_all(net: nn.Module, config: SampleConfig, n: int, batch_size: int, world: World = ALONE) -> Tensor:
    """Images 0..n−1 in one tensor, uint8 [n, C, H, W], on every process."""
    images = torch.empty(n, net.in_channels, net.image_size, net.image_size, dtype=torch.uint8)
    found = list(generate_batches(net, config, range(n), batch_size, world=world))
    indices = torch.tensor([i for batch, _ in found for i in batch], dtype=torch.int64)
    mine = torch.cat([pictures for _, pictures in found]) if found else images[:0]
    for where, pictures in zip(world.collect(indices), world.collect(mine), strict=True):
        images[where] = pictures
    return images
