"""One way to train and to sample, whatever the process: each kind answers as `Process` asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import DiffusionConfig, ImageSize, SampleConfig, check_size, require
from .linear_process import LinearProcess
from .samplers import check, options_of
from .synaptic import SynapticLoss

Denoiser = Callable[[Tensor, Tensor], Tensor]


class Process(Protocol):
    """What training and sampling ask of a process. Its kinds stand in `config.processes`, one line each.

    Shapes: x_0 images [N, C, *S] in [−1, 1], t [N] of `draw_times`, noise ~ N(0, I) [N, state_channels·C, *S] like the
    network's input and output. net(x, t): the network, told times as `pair` tells them. state_channels: channels of the
    network for each of the images'. default_sampler: of who names none.
    """

    state_channels: int
    default_sampler: str

    @classmethod
    def of(cls, config: DiffusionConfig, image_size: ImageSize) -> Process:
        """The process that `config` describes, for images of `image_size` pixels."""

    @classmethod
    def states(cls, steps: int, seed: int) -> SampleConfig:
        """A deterministic sampler whose states are worth looking at."""

    def draw_times(
        self, count: int, device: Any = None, generator: torch.Generator | None = None, power: float = 1.0
    ) -> Tensor:
        """Diffusion times [count] for training: whole steps, or float64 on the CPU, of uniform u^power."""

    def share(self, t: Tensor) -> Tensor:
        """Times as shares of all time, float64 [N] from 0 to 1."""

    def pair(self, config: DiffusionConfig, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What a network is trained on: x [N, C', *S] and the time it is told [N]."""

    def loss(
        self,
        net: Denoiser,
        config: DiffusionConfig,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        loss_type: str,
        synaptic: SynapticLoss | None = None,
    ) -> Tensor:
        """Of each image [N]. `synaptic` is needed for "scl" alone."""

    def loss_weights(self, t: Tensor, name: str, gamma: float) -> Tensor:
        """How much each image's loss counts [N], see `loss_weights`. Raises UserError for a name it does not know."""

    def data(self, state: Tensor) -> Tensor:
        """The images [N, C, *S] of a sampler's state."""

    def linear(self) -> LinearProcess:
        """The same as a linear SDE in its own time, for gDDIM and Euler."""

    def denoiser(self, net: Denoiser, config: DiffusionConfig) -> Denoiser:
        """The whole noise prediction, told the times of `linear`."""


def make_process(config: DiffusionConfig, image_size: ImageSize) -> Process:
    """The process that `config` describes, for images of `image_size` pixels."""
    return config.kind.cls.of(config, image_size)


def network_channels(config: DiffusionConfig, image_channels: int) -> int:
    """Channels of the network's input and output: CLD adds a velocity to each of the image's."""
    return config.kind.cls.state_channels * image_channels


def image_channels(net) -> int:
    """Channels of the images that a denoiser makes, decoded where they are latents."""
    return net.diffusion.decoded_channels or net.in_channels // network_channels(net.diffusion, 1)


def clips(sample: SampleConfig, config: DiffusionConfig) -> bool:
    """Whether the predicted image is clipped inside the chain: latents have no range that they could be clipped to."""
    return sample.clip and not config.autoencoder


def size_of(net) -> ImageSize:
    """Of what a denoiser reads; a user's may say it as one number. Raises UserError."""
    return check_size(net.image_size, "image_size")


def network_shape(net) -> tuple[int, int, int]:
    """[C', H, W] of a denoiser's input and output."""
    return (net.in_channels, *size_of(net))


def image_shape(net) -> tuple[int, int, int]:
    """[C, H, W] of the images that a denoiser makes."""
    return (image_channels(net), *decoded_size(net))


def decoded_size(net) -> ImageSize:
    """Of the images that a denoiser makes, decoded where they are latents."""
    return size_of(net).times(net.diffusion.downscale)


def current_steps(net) -> int | None:
    """Time steps of the currents that a network, or its configuration, takes; None if it takes images alone."""
    return net.spike_steps if getattr(net, "currents", False) else None


def check_sampling(
    config: DiffusionConfig,
    image_size: ImageSize,
    sample: SampleConfig,
    statistics: Tensor | None = None,
    spike_steps: int | None = None,
) -> None:
    """Raise UserError, before anything is computed, where sampler and process or network do not fit together.

    spike_steps: see `current_steps`.
    """
    sample.check_fits(config)
    process = make_process(config, image_size)
    options = options_of(sample, statistics, spike_steps, config.factor)
    check(sample.sampler, process.linear() if sample.kind.linear else process, **options)


def run_sampler(
    net: Denoiser,
    config: DiffusionConfig,
    image_size: ImageSize,
    sample: SampleConfig,
    noise: Callable[[], Tensor],
    statistics: Tensor | None = None,
    on_step: Callable[[float, Tensor], None] | None = None,
    spike_steps: int | None = None,
) -> Tensor:
    """Images [N, C, H, W] from draws of `noise` in the network's shape; see `check_sampling`."""
    sample.check_fits(config)
    process = make_process(config, image_size)
    sampler, options = sample.kind, options_of(sample, statistics, spike_steps, config.factor)
    arguments: dict[str, Any] = {"noise": noise, "clip": clips(sample, config), "on_step": on_step}
    if sampler.linear:
        return sampler(process.denoiser(net, config), process.linear(), noise(), **arguments, **options)
    return sampler(net, process, noise(), **arguments, **options)


def options_that_count(sample: SampleConfig) -> dict[str, object]:
    """The settings besides steps, eta and clip that change what comes out, as far as they are not the default."""
    names = set(sample.kind.options) - {"steps", "eta", "statistics", "spike_steps", "factor"}
    names |= {"amp", "tf32", "carry", "carry_steps", "guidance", "class_label"}
    default = SampleConfig(sampler=sample.sampler)
    default = replace(default, skip="uniform")  # folders and scores were named before the solvers had their own
    return {name: getattr(sample, name) for name in sorted(names) if getattr(sample, name) != getattr(default, name)}


def uses_eta(sample: SampleConfig) -> bool:
    return "eta" in sample.kind.options


def states_config(config: DiffusionConfig, steps: int, seed: int) -> SampleConfig:
    """A deterministic sampler whose states are worth looking at: DDIM, or gDDIM where the process is not VP."""
    return config.kind.cls.states(steps, seed)


def require_vp(config: DiffusionConfig, what: str) -> None:
    """Raise UserError unless the process is VP."""
    require(config.whole_steps, f"--process={config.process}: {what} needs --process=vp")
