"""Inputs on which gap and cost are measured: states that a sampler really visits. No data set is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SampleConfig
from ..diffusion.process import states_config
from .sampling import generate, image_groups
from .subject import Sampled


def sampler_states(net: Sampled, images: int, times: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [images·times, C, H, W] and t [images·times] on the own sampling path of `net`, times spread over all of it.

    net: as in `sampling.generate`.
    """
    steps = min(net.diffusion.diffusion_steps, 20)
    visited = sampler_calls(net, states_config(net.diffusion, steps, seed), images)
    picks = torch.linspace(0, len(visited) - 1, min(times, len(visited))).round().long().tolist()
    return torch.cat([visited[i][0] for i in picks]), torch.cat([visited[i][1] for i in picks])


def sampler_calls(net: Sampled, sample: SampleConfig, images: int) -> list[tuple[Tensor, Tensor]]:
    """What `net` is called with while it makes images 0..images−1: x [images, C, H, W] and t [images], call by call.

    net: as in `sampling.generate`.
    """
    groups: list[list[tuple[Tensor, Tensor]]] = []
    for part in image_groups(net, range(images)):
        groups.append([])
        generate(net, sample, part, on_call=lambda x, t: groups[-1].append((x.clone(), t.clone())))
    return [(torch.cat([x for x, _ in parts]), torch.cat([t for _, t in parts])) for parts in zip(*groups, strict=True)]


def halfway_state(net: Sampled, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [1, C, H, W] and t [1] halfway along the network's own sampling path, the one that rasters are recorded on."""
    x, t = sampler_states(net, 1, 3, seed)
    middle = slice(len(x) // 2, len(x) // 2 + 1)
    return x[middle], t[middle]
