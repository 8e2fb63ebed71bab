"""From a denoiser to 8-bit images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from quant import quantized_once

from .compiled import compiled
from .config import SampleConfig
from .data import to_uint8
from .diffusion import ImageNoise
from .diffusion.process import check_sampling, current_steps, image_channels, run_sampler
from .runtime import layout_for
from .world import ALONE, World


def generate(
    net: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    *,
    on_call: Callable[[Tensor, Tensor], None] | None = None,
    on_step: Callable[[float, Tensor], None] | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """Images `indices` of seed `config.seed`, uint8 [len(indices), C, H, W]; which batch they are in does not matter.

    net: any denoiser that knows its `in_channels`, `image_size` and `diffusion` (ANN or SNN), in eval mode.
    on_call(x, t): what the network is called with, each time; of currents the first time step.
    on_step(time, state): the sampler's own states.
    statistics: of Analytic-DPM, see `analytic_statistics`.

    Raises UserError for a sampler that does not fit, before the first call.
    """
    # A single image takes other convolution routines than a batch, which round differently; give it company.
    rows = [*indices, *indices] if len(indices) == 1 else indices
    count = len(indices)
    check_generation(net, config, statistics)
    denoiser, like = compiled(net), next(net.parameters())
    layout = layout_for(like.device)

    def called(x: Tensor, t: Tensor) -> Tensor:
        if on_call is not None:
            on_call(x[:count], t[:count])
        with torch.autocast(like.device.type, torch.bfloat16, enabled=config.amp):
            return denoiser(x.to(memory_format=layout), t).to(like.dtype)

    shape = (net.in_channels, net.image_size, net.image_size)
    noise = ImageNoise(config.seed, rows, shape, like.device, like.dtype)
    step = None if on_step is None else lambda time, state: on_step(time, state[:count])
    with quantized_once(net):
        x_0 = run_sampler(called, net.diffusion, net.image_size, config, noise, statistics, step, current_steps(net))
    return to_uint8(x_0).cpu()[:count]


def check_generation(net: nn.Module, config: SampleConfig, statistics: Tensor | None = None) -> None:
    """Raise UserError, before anything is computed, where sampler and network do not fit together."""
    check_sampling(net.diffusion, net.image_size, config, statistics, current_steps(net))


def generate_batches(
    net: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    batch_size: int,
    *,
    label: str = "sampling",
    progress: bool = True,
    world: World = ALONE,
    statistics: Tensor | None = None,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (indices of the batch, its images) until all `indices` are done, with one progress bar over calls.

    The processes of `world` share the batches, so each yields its own; no image depends on how many they are.
    """
    calls = config.calls(net.diffusion)
    size = min(batch_size, max(1, -(-len(indices) // world.size)))  # small jobs keep everybody busy, too
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    with world.progress(len(indices) * calls, label, "call", progress) as bar:
        for batch in world.share(batches):
            images = generate(net, config, batch, on_call=lambda x, t: bar.update(len(x)), statistics=statistics)
            yield batch, images


def generate_all(net: nn.Module, config: SampleConfig, n: int, batch_size: int, world: World = ALONE) -> Tensor:
    """Images 0..n−1 in one tensor, uint8 [n, C, H, W], on every process."""
    images = torch.empty(n, image_channels(net), net.image_size, net.image_size, dtype=torch.uint8)
    found = list(generate_batches(net, config, range(n), batch_size, world=world))
    indices = torch.tensor([i for batch, _ in found for i in batch], dtype=torch.int64)
    mine = torch.cat([pictures for _, pictures in found]) if found else images[:0]
    for where, pictures in zip(world.collect(indices), world.collect(mine), strict=True):
        images[where] = pictures
    return images
