"""What fine-tuning runs on: noised real images, or states that the sampler visits; and the images it never sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ..config import CLASS_DROPOUT, SampleConfig, require
from ..data import ImageDataset, Share, batches, labels_at, to_model_range
from ..diffusion.process import make_process, size_of
from ..distributed.runtime import seed_from
from ..distributed.world import ALONE, World
from ..generate.classes import classes_of
from ..generate.sampling import Hooks, image_groups, walk
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

    Of a network that is told classes (x_t, t, y), of which a share of `CLASS_DROPOUT` is "no class".

    batch_size: of all processes of `world` together; each gets its share. Raises UserError if it cannot be shared.
    """
    process = make_process(net.diffusion, size_of(net))
    like = next(net.parameters())
    rows = world.rows(batch_size, "--ft_batch_size")
    each = rows.stop - rows.start
    share = Share(world.rank, world.size)
    stream = batches(dataset, each, seed=seed, start_step=start_step, share=share)
    for step, images in enumerate(stream, start_step):
        generator = torch.Generator().manual_seed(seed_from(seed, step))
        x_0 = to_model_range(images)
        t = process.draw_times(batch_size, generator=generator)[rows]
        noise = torch.randn((batch_size, net.in_channels, *x_0.shape[2:]), generator=generator)[rows]
        x_t, t = process.pair(net.diffusion, x_0, t, noise)
        pair = x_t.to(like.device, like.dtype), t.to(like.device)
        count, _ = classes_of(net)
        if not count:
            yield pair
            continue
        labels = labels_at(dataset, len(images), step, seed=seed, share=share)
        dropped = torch.rand(batch_size, generator=generator)[rows] < CLASS_DROPOUT
        yield *pair, torch.where(dropped, count, labels).to(like.device)


def sampler_batches(
    net: Network, sample: SampleConfig, batch_size: int, seed: int, start_step: int, world: World = ALONE
) -> Iterator[Batch]:
    """Endless (x, t), or (x, t, y), drawn from states of `net`'s own sampling paths; a function of (seed, step).

    `POOL_IMAGES` paths are kept, each with at most `POOL_STEPS` states of `sample`'s sampler, evenly spaced. With
    guidance an image has two, with its class and without. Shared as above.
    """
    visited: list[tuple[torch.Tensor, torch.Tensor]] = []
    part_labels: torch.Tensor | None = None
    config = dataclasses.replace(sample.from_rest(), seed=seed_from(seed, 0))
    every = max(1, -(-config.calls(net.diffusion) // POOL_STEPS))
    calls = 0

    def keep(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> None:
        nonlocal calls, part_labels
        part_labels = y
        if calls % every == 0:
            visited.append((x.clone(), t[0].cpu()))
        calls += 1

    pool, classes = [], []  # of each group of images the states, [steps, images, C, H, W], and classes
    for part in image_groups(net, range(POOL_IMAGES)):
        visited, calls = [], 0
        walk(net, config, part, hooks=Hooks(on_call=keep))
        pool.append(torch.stack([x for x, _ in visited]))
        classes += [] if part_labels is None else [part_labels]
    states = torch.cat(pool, dim=1)
    times = torch.stack([t for _, t in visited])
    rows = world.rows(batch_size, "--ft_batch_size")
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(seed_from(seed, step))
        when = torch.randint(len(times), (batch_size,), generator=generator)[rows]
        chosen = torch.randint(states.shape[1], (batch_size,), generator=generator)[rows].to(states.device)
        labels = [torch.cat(classes)[chosen]] if classes else []
        yield states[when.to(states.device), chosen], times[when].to(states.device), *labels
        step += 1
