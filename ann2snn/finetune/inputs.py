"""What fine-tuning runs on: noised real images, or states that the sampler visits; and the images it never sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ..config import SampleConfig, require
from ..data import ImageDataset, batches, to_model_range
from ..diffusion.process import draw_times, make_process, network_pair
from ..distributed.runtime import seed_from
from ..distributed.world import ALONE, World
from ..generate.sampling import generate, image_groups
from ..nets.architecture import Network
from .subject import Batch

HELD_BACK = 32  # images of the validation batch, never tuned on
POOL_IMAGES, POOL_STEPS = 64, 50  # sampling paths that `sampler_batches` draws from, and their states at most


def hold_back(dataset: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """(images to tune on, the last `HELD_BACK` images, to judge on). Raises UserError for a set too small to split."""
    count = len(dataset)
    require(
        count > HELD_BACK,
        f"{dataset.name} has {count} images: fine-tuning holds {HELD_BACK} back and needs more than that",
    )
    return dataset.part(0, count - HELD_BACK), dataset.part(count - HELD_BACK, count)


def noised_batches(
    dataset: ImageDataset, net: Network, batch_size: int, seed: int, start_step: int, world: World = ALONE
) -> Iterator[Batch]:
    """Endless (x_t, t): real images noised at t uniform over all diffusion steps; a function of (seed, step).

    batch_size: of all processes of `world` together; each gets its share. Raises UserError if it cannot be shared.
    """
    process = make_process(net.diffusion, net.image_size)
    like = next(net.parameters())
    rows = world.rows(batch_size, "--ft_batch_size")
    each = rows.stop - rows.start
    stream = batches(dataset, each, seed=seed, start_step=start_step, rank=world.rank, world_size=world.size)
    for step, images in enumerate(stream, start_step):
        generator = torch.Generator().manual_seed(seed_from(seed, step))
        x_0 = to_model_range(images)
        t = draw_times(process, batch_size, generator=generator)[rows]
        noise = torch.randn((batch_size, net.in_channels, *x_0.shape[2:]), generator=generator)[rows]
        x_t, t = network_pair(process, net.diffusion, x_0, t, noise)
        yield x_t.to(like.device, like.dtype), t.to(like.device)


def sampler_batches(
    net: Network, sample: SampleConfig, batch_size: int, seed: int, start_step: int, world: World = ALONE
) -> Iterator[Batch]:
    """Endless (x, t) drawn from states of `net`'s own sampling paths; a function of (seed, step). Shared as above.

    `POOL_IMAGES` paths are kept, each with at most `POOL_STEPS` states of `sample`'s sampler, evenly spaced.
    """
    visited: list[tuple[torch.Tensor, torch.Tensor]] = []
    config = dataclasses.replace(sample, seed=seed_from(seed, 0))
    every = max(1, -(-config.calls(net.diffusion) // POOL_STEPS))
    calls = 0

    def keep(x: torch.Tensor, t: torch.Tensor) -> None:
        nonlocal calls
        if calls % every == 0:
            visited.append((x.clone(), t[0].cpu()))
        calls += 1

    pool = []  # of each group of images the states, [steps, images, C, H, W]
    for part in image_groups(net, range(POOL_IMAGES)):
        visited, calls = [], 0
        generate(net, config, part, on_call=keep)
        pool.append(torch.stack([x for x, _ in visited]))
    states = torch.cat(pool, dim=1)
    times = torch.stack([t for _, t in visited])
    rows = world.rows(batch_size, "--ft_batch_size")
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(seed_from(seed, step))
        when = torch.randint(len(times), (batch_size,), generator=generator)[rows]
        which = torch.randint(POOL_IMAGES, (batch_size,), generator=generator)[rows]
        yield states[when.to(states.device), which.to(states.device)], times[when].to(states.device)
        step += 1
