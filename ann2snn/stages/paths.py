"""States of the first images on their way from noise, as the quantized network and the spiking network take it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..config import SampleConfig
from ..diffusion.process import image_shape, make_process, size_of
from ..generate.subject import Sampled
from ..latent import as_images
from ..report.trajectory import Trajectory
from ..run.paths import SamplingPaths, save_paths

MOST_IMAGES, MOST_FRAMES, LEAST_FRAMES = 2, 32, 8
MOST_VALUES = 1 << 21  # of all states of one network: large images get fewer frames


def as_pictures(net: Sampled) -> Callable[[Tensor], Tensor]:
    """From a sampler's states to what is shown of them, uint8: of CLD the positions, of blur diffusion the pixels."""
    process, shown = make_process(net.diffusion, size_of(net)), as_images(net)
    return lambda state: shown(process.data(state))


class FirstPath:
    """Keeps the states of the first images while `net` samples; `watch` is the sampler's `on_step`."""

    def __init__(self, net: Sampled) -> None:
        values = MOST_IMAGES * math.prod(image_shape(net))
        self.kept = Trajectory(max(LEAST_FRAMES, min(MOST_FRAMES, MOST_VALUES // values)))
        self._pictures, self._images = as_pictures(net), 0

    def watch(self, time: float, state: Tensor) -> None:
        pictures = self._pictures(state[:MOST_IMAGES])
        self._images = len(pictures)  # one, where the processes share so few images that a batch has one
        self.kept.add(pictures, float(time))

    def frames(self, images: Tensor) -> np.ndarray:
        """uint8 [F, N, C, H, W], the finished ones of `images` [N', C, H, W] last."""
        return self.kept.frames(images[: self._images]).numpy()


def write_paths(
    path: Path, ann: tuple[FirstPath, Tensor], snn: tuple[FirstPath, Tensor], sample: SampleConfig, spiking: dict
) -> None:
    """Write what both networks' paths kept, each with its finished images, and how the images were made."""
    settings = {"sampler": sample.sampler, "sampler_steps": sample.steps, "eta": sample.eta, "seed": sample.seed}
    settings |= {"carry": sample.carry, "spiking": spiking}
    ann_states, snn_states = (kept.frames(images) for kept, images in (ann, snn))
    save_paths(path, SamplingPaths(ann_states, snn_states, np.array(ann[0].kept.times), settings))
