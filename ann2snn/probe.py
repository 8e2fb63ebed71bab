"""Inputs on which the gap is measured: states that the sampler really visits. No data set is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SampleConfig
from .nets import UNet
from .sampling import generate


def sampler_states(ann: UNet, images: int, times: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [images·times, C, H, W] and t [images·times] on the ANN's own DDIM path, times spread over the whole chain."""
    steps = min(ann.diffusion.diffusion_steps, 20)
    visited: list[tuple[int, Tensor]] = []
    config = SampleConfig("ddim", steps=steps, seed=seed)
    generate(ann, config, range(images), on_step=lambda step, x: visited.append((step, x.clone())))
    picks = torch.linspace(0, len(visited) - 1, min(times, len(visited))).round().long().tolist()
    x = torch.cat([visited[i][1] for i in picks])
    t = torch.cat([torch.full((images,), visited[i][0]) for i in picks])
    return x, t.to(x.device)
