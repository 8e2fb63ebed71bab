"""From a denoiser to 8-bit images.

On a CPU, image i of seed s is the same bytes for every batch size, number of threads or processes, and resume point, by
construction: the routines for convolutions and matrix products are chosen, and round, by the shape of a batch, so
images are always computed in the same groups of consecutive indices, whole ones, whichever of them are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import ImageSize, SampleConfig, require
from ..convert import SpikingNetwork
from ..data import to_uint8
from ..diffusion import ImageNoise
from ..diffusion.process import (
    check_sampling,
    current_steps,
    image_shape,
    network_shape,
    run_sampler,
    size_of,
)
from ..distributed.precision import in_tf32
from ..distributed.runtime import evaluating, layout_for, steady_convolutions
from ..distributed.world import ALONE, World
from ..errors import UserError
from ..latent import Autoencoder, as_images
from ..quant import quantized_once
from .classes import branches_of, resolved
from .compiled import compiled
from .noise import StartingWith
from .spikes import ImageSpikes, SpikeTally
from .subject import Sampled

#: A group has 512 / side images, rounded down to a power of two, and no more or fewer than this. Measured on the
#: demo's network and larger ones: within 5 % of batches of 64. No single image: it takes other routines.
FEWEST_ROWS, MOST_ROWS = 2, 32


class Hooks(NamedTuple):
    """Called while images are made, with the rows of the images asked for, one of the `image_groups` after the other.

    on_call(x, t), of a network that is told classes (x, t, y): what it is called with, each time; of currents the first
    time step; with guidance the rows of the images with their class, then without it.
    on_step(time, state): the sampler's own states.
    on_spikes(list): of a converted network, what each image took; once for every group.
    """

    on_call: Callable[..., None] | None = None
    on_step: Callable[[float, Tensor], None] | None = None
    on_spikes: Callable[[list[ImageSpikes]], None] | None = None


class Given(NamedTuple):
    """What images are made from besides their seed.

    statistics: of Analytic-DPM, see `analytic_statistics`.
    x_T: noise [N, C', H, W] to start image i from, in the place of its first draw; C' are the network's channels.
    labels: classes, int64 [N], of image i, in the place of `config.class_label`.
    autoencoder: decodes what a network on latents makes, in the place of `net.autoencoder`.
    """

    statistics: Tensor | None = None
    x_T: Tensor | None = None
    labels: Tensor | None = None
    autoencoder: Autoencoder | None = None


NO_HOOKS, SEED_ALONE = Hooks(), Given()


class Rows(NamedTuple):
    """What one group of images is made with.

    denoiser: x [R, C, H, W], t [R] → the prediction. indices: of the images, one a row. noise: their draws.
    on_step: as `generate`'s, for all rows.
    """

    denoiser: Callable[[Tensor, Tensor], Tensor]
    indices: list[int]
    noise: ImageNoise
    on_step: Callable[[float, Tensor], None] | None

    def of(self, values: Tensor) -> Tensor:
        """values [N, …] by image → by row, in the noise's type; rows beyond the last image repeat it."""
        picked = values[[min(index, len(values) - 1) for index in self.indices]]
        return picked.to(device=self.noise.device, dtype=self.noise.dtype)


#: From a group's rows to what becomes of them, [R, …].
Chain = Callable[[Rows], Tensor]


def generate(
    net: Sampled,
    config: SampleConfig,
    indices: Sequence[int],
    given: Given = SEED_ALONE,
    hooks: Hooks = NO_HOOKS,
) -> Tensor:
    """Images `indices` of seed `config.seed`, uint8 [len(indices), C, H, W]; which batch they are in does not matter.

    net: any denoiser that knows its `in_channels`, `image_size` and `diffusion` (ANN or SNN); runs in eval mode, and is
    left in its own.

    Raises UserError for a sampler or an autoencoder that does not fit, before the first call.
    """
    shown = as_images(net, given.autoencoder)
    if len(indices) == 0:
        check_generation(net, config, given.statistics)
        return torch.empty(0, *image_shape(net), dtype=torch.uint8)
    return walk(net, config, indices, given, hooks, shown)


def walk(
    net: Sampled,
    config: SampleConfig,
    indices: Sequence[int],
    given: Given = SEED_ALONE,
    hooks: Hooks = NO_HOOKS,
    shown: Callable[[Tensor], Tensor] = to_uint8,
) -> Tensor:
    """`generate` of one image or more, without the end, if need be: `shown` makes images of what the sampler made."""
    check_generation(net, config, given.statistics)

    def chain(rows: Rows) -> Tensor:
        noise = rows.noise if given.x_T is None else StartingWith(rows.of(given.x_T), rows.noise)
        options = (noise, given.statistics, rows.on_step, current_steps(net))
        return shown(run_sampler(rows.denoiser, net.diffusion, size_of(net), config, *options))

    return run_chain(net, config, indices, chain, hooks, given.labels)


def run_chain(
    net: Sampled,
    config: SampleConfig,
    indices: Sequence[int],
    chain: Chain,
    hooks: Hooks = NO_HOOKS,
    labels: Tensor | None = None,
) -> Tensor:
    """What `chain` makes of the images `indices` (at least one), [len(indices), …] on the CPU.

    Groups, hooks, network and labels as in `generate`; of `config` the seed, and how the network is called.
    """
    made, groups = [], image_groups(net, indices)
    with torch.no_grad(), in_tf32(config.tf32), evaluating(net), steady_convolutions(net), quantized_once(net):
        for part in groups:
            rows = computed_rows(net, part)
            places = [rows.index(index) for index in part]
            made.append(_group(net, config, rows, places, chain, hooks, labels))
    place = {index: i for i, index in enumerate(index for part in groups for index in part)}
    return torch.cat(made)[[place[index] for index in indices]]


def image_groups(net: Sampled, indices: Sequence[int]) -> list[list[int]]:
    """`indices` in ascending order, those that are computed together in one list."""
    if not _on_cpu(net):
        return [sorted(set(indices))] if len(indices) else []
    groups: dict[int, list[int]] = {}
    for index in sorted(set(indices)):
        groups.setdefault(index // group_size(size_of(net)), []).append(index)
    return list(groups.values())


def group_size(image_size: ImageSize) -> int:
    """Images of one group: so many that calls are worth their overhead, and few enough for cache and memory."""
    fitting = 512 // image_size.side
    return max(FEWEST_ROWS, min(MOST_ROWS, 1 << fitting.bit_length() >> 1))


def computed_rows(net: Sampled, part: list[int]) -> list[int]:
    """The indices that are computed for one of the `image_groups`, at least two: a single image rounds differently."""
    if not _on_cpu(net):
        return part if len(part) > 1 else part * 2
    size = group_size(size_of(net))
    first = part[0] // size * size
    return list(range(first, first + size))


def _on_cpu(net: Sampled) -> bool:
    return next(net.parameters()).device.type == "cpu"


def _group(
    net: Sampled,
    config: SampleConfig,
    rows: list[int],
    places: list[int],
    chain: Chain,
    hooks: Hooks,
    labels: Tensor | None,
) -> Tensor:
    """What `chain` makes of the images `rows`, computed together: of those at `places`."""
    denoiser, like = compiled(net), next(net.parameters())
    layout = layout_for(like.device)
    branches = branches_of(net, config, rows, labels, like.device)
    watched = branches.rows(places, len(rows))

    def called(x: Tensor, t: Tensor) -> Tensor:
        x, *constants = branches.call(x, t)
        if hooks.on_call is not None:
            hooks.on_call(x[watched], *(value[watched] for value in constants))
        with torch.autocast(like.device.type, torch.bfloat16, enabled=config.amp):
            answer = denoiser(x.to(memory_format=layout), *constants).to(like.dtype)
        return branches.combined(answer, net.in_channels)

    noise = ImageNoise(config.seed, rows, network_shape(net), like.device, like.dtype)
    on_step, tally = hooks.on_step, SpikeTally()
    step = None if on_step is None else lambda time, state: on_step(time, state[places])
    with contextlib.ExitStack() as stack:
        if config.carry:
            stack.enter_context(_spiking(net).carrying(config.carry_steps))
        if hooks.on_spikes is not None:
            stack.enter_context(_spiking(net).monitored(tally))
        made = chain(Rows(called, rows, noise, step))
    if hooks.on_spikes is not None:
        hooks.on_spikes(tally.of([rows[row] for row in places], places, _spiking(net).restarts, branches.parts))
    return made[places].cpu()


def _spiking(net: Sampled) -> SpikingNetwork:
    if isinstance(net, SpikingNetwork):
        return net
    raise UserError("--carry: only a converted network has levels to keep (ann2snn.convert)")


def check_generation(net: Sampled, config: SampleConfig, statistics: Tensor | None = None) -> None:
    """Raise UserError, before anything is computed, where sampler and network do not fit together."""
    resolved(net, config)
    check_sampling(net.diffusion, size_of(net), config, statistics, current_steps(net))
    if config.carry:
        _spiking(net).check_carrying(config.carry_steps)


def generate_batches(
    net: Sampled,
    config: SampleConfig,
    indices: Sequence[int],
    batch_size: int,
    *,
    given: Given = SEED_ALONE,
    hooks: Hooks = NO_HOOKS,
    label: str | None = "sampling",
    world: World = ALONE,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield (indices of the batch, its images) until all `indices` are done, with one progress bar over calls.

    The processes of `world` share the batches, so each yields its own; no image depends on how many they are. On a CPU
    batches are the `image_groups`, whatever `batch_size`. hooks: `on_step` sees this process's first batch alone.
    label: of the bar, None for none.
    """
    require(batch_size >= 1, f"batch_size={batch_size}: use at least 1")
    calls = config.calls(net.diffusion) * config.branches
    batches: Sequence[Sequence[int]]
    if _on_cpu(net):
        batches = image_groups(net, indices)
    else:
        size = min(batch_size, max(1, -(-len(indices) // world.size)))  # small jobs keep everybody busy, too
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    with world.progress(len(indices) * calls, label or "", "call", label is not None) as bar:

        def advance(x: Tensor, *constants: Tensor) -> None:
            bar.update(len(x))
            if hooks.on_call is not None:
                hooks.on_call(x, *constants)

        for place, batch in enumerate(world.share(batches)):
            watched = hooks._replace(on_call=advance, on_step=hooks.on_step if place == 0 else None)
            yield batch, generate(net, config, batch, given, watched)


def generate_all(
    net: Sampled,
    config: SampleConfig,
    n: int,
    batch_size: int,
    world: World = ALONE,
    *,
    given: Given = SEED_ALONE,
    hooks: Hooks = NO_HOOKS,
    progress: bool = True,
) -> Tensor:
    """Images 0..n−1 in one tensor, uint8 [n, C, H, W], on every process; given, hooks: as in `generate_batches`."""
    images = torch.empty(n, *image_shape(net), dtype=torch.uint8)
    label = "sampling" if progress else None
    batches = generate_batches(net, config, range(n), batch_size, given=given, hooks=hooks, label=label, world=world)
    own_batches = list(batches)
    indices = torch.tensor([i for batch, _ in own_batches for i in batch], dtype=torch.int64)
    own_images = torch.cat([pictures for _, pictures in own_batches]) if own_batches else images[:0]
    for places, pictures in zip(world.collect(indices), world.collect(own_images), strict=True):
        images[places] = pictures
    return images
