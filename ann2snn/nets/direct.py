"""What directly trained spiking denoisers share: their settings, their neurons, and memory against time in training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..config import FULL_PRECISION, DiffusionConfig, DirectSpiking, require
from ..config.checks import (
    check_blocks,
    check_diffusion_steps,
    check_even_width,
    check_multipliers,
    make_whole,
)
from ..config.direct import MOST_STEPS
from ..config.size import SQUARE_32, ImageSize, check_halving, check_size
from ..kernels import SURROGATES, LIFRule
from ..neurons import LIFNeuron, Monitor, StepBatchNorm, unfold_time
from .shared import Shared


@dataclass(frozen=True)
class DirectConfig:
    """Shape of a directly trained spiking U-Net, and its neurons.

    spike_steps: time steps of a network call. threshold: that all neurons are trained with, in units of the current.
    surrogate: derivative of the spike, see `kernels.lif_rule`.

    Raises UserError for values that make no network.
    """

    arch: ClassVar[str]  # the name of `--arch`
    bits: ClassVar[int] = FULL_PRECISION  # of the weights and currents; the activations are spikes

    in_channels: int = 3
    image_size: ImageSize = SQUARE_32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    dropout: float = 0.0
    spike_steps: int = 4
    threshold: float = 1.0
    surrogate: str = "atan"
    diffusion_steps: int = 1000

    def __post_init__(self) -> None:
        make_whole(self)
        object.__setattr__(self, "image_size", check_size(self.image_size))
        require(self.in_channels in (1, 3), f"{self.in_channels} image channels: images have 1 (grey) or 3 (colour)")
        check_even_width(self.ch)
        require(1 <= self.spike_steps <= MOST_STEPS, f"--timestep={self.spike_steps}: use 1 to {MOST_STEPS}")
        check_diffusion_steps(self.diffusion_steps)
        for name, flag in (("dropout", "--dropout"), ("threshold", "--threshold")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            require(number, f"{flag}={value}: must be a number")
        check_blocks(self.num_res_blocks, self.dropout)
        require(0 < self.threshold <= 1000, f"--threshold={self.threshold}: use a value above 0, at most 1000")
        require(
            isinstance(self.surrogate, str) and self.surrogate in SURROGATES,
            f"--surrogate={str(self.surrogate)[:40]}: use one of {', '.join(SURROGATES)}",
        )
        check_multipliers(self.ch_mult, levels=8)
        check_halving(self.image_size, len(self.ch_mult))

    @property
    def denoised_channels(self) -> int:
        """Channels of the network's output."""
        return self.in_channels

    @property
    def rule(self) -> LIFRule:
        """The neurons' dynamics."""
        return LIFRule(threshold=self.threshold, surrogate=self.surrogate)

    def to_dict(self) -> dict:
        plain = dataclasses.asdict(self) | {"image_size": self.image_size.stored}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


class DirectDenoiser(Shared, nn.Module):
    """Base of spiking denoisers f(x [N, C, H, W], t [N]) → [N, C, H, W]; every call starts with its neurons at rest.

    recompute: in training, keep no activations inside a block but compute them again for the gradient.
    """

    recompute: bool = False

    def __init__(self, config: DirectConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.diffusion = diffusion or DiffusionConfig(diffusion_steps=config.diffusion_steps)

    @property
    def in_channels(self) -> int:
        return self.config.in_channels

    @property
    def image_size(self) -> ImageSize:
        return self.config.image_size

    @property
    def spike_steps(self) -> int:
        return self.config.spike_steps

    def neurons(self) -> Iterator[tuple[str, LIFNeuron]]:
        """(name, neuron layer) in the order of registration."""
        for name, module in self.named_modules():
            if isinstance(module, LIFNeuron):
                yield name, module

    @property
    def threshold(self) -> float:
        """Of all neurons, now; `config.threshold` is the one of the training."""
        return next(self.neurons())[1].rule.threshold

    def set_threshold(self, value: float) -> None:
        """Give every neuron another threshold: threshold guidance of SDM (arXiv 2408.16467). Raises UserError."""
        replace(self.config, threshold=value)  # checks it
        for _, neuron in self.neurons():
            neuron.rule = replace(neuron.rule, threshold=value)

    @property
    def spiking(self) -> DirectSpiking:
        """How the network runs now."""
        config = self.config
        return DirectSpiking(config.arch, config.spike_steps, self.threshold, getattr(config, "tsm", False))

    @property
    def depth(self) -> int:
        """Neuron layers in sequence on the longest path: all of them, where none stand side by side."""
        return sum(1 for _ in self.neurons())

    @property
    def time_steps(self) -> str:
        """Latency of a network call in time steps, for people."""
        return f"{self.spike_steps} (+ {self.depth} where every layer delays by a step)"

    @contextlib.contextmanager
    def monitored(self, monitor: Monitor) -> Iterator[None]:
        """Send every neuron's spikes to `monitor` inside the context."""
        layers = [neuron for _, neuron in self.neurons()]
        before = [layer.monitor for layer in layers]
        for layer in layers:
            layer.monitor = monitor
        try:
            yield
        finally:
            for layer, previous in zip(layers, before, strict=True):
                layer.monitor = previous

    def run_block(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """block(*inputs), its insides kept or computed again."""
        if not (self.recompute and self.training):
            return block(*inputs)
        contexts = functools.partial(_contexts, block)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _without_updates(block)


@contextlib.contextmanager
def _without_updates(block: nn.Module) -> Iterator[None]:
    """The second pass must not move running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, StepBatchNorm)]
    for norm in norms:
        norm.update = False
    try:
        yield
    finally:
        for norm in norms:
            norm.update = True


class StepConv(nn.Conv3d):
    """Convolution with a kernel (k, k, 1) over height, width and time: the same 2-D convolution at every step.

    A Conv3d by its parameters' shapes alone, which are those of published checkpoints.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        edge = kernel // 2
        super().__init__(c_in, c_out, (kernel, kernel, 1), stride=(stride, stride, 1), padding=(edge, edge, 0))

    def forward(self, x: Tensor) -> Tensor:
        """x [L·N, C, H, W] → [L·N, C', H', W']."""
        return F.conv2d(x, self.weight[..., 0], self.bias, self.stride[:2], self.padding[:2])


def over_time(x: Tensor, steps: int) -> Tensor:
    """The same x [N, *S] at every time step [L·N, *S]."""
    return x.repeat(steps, *[1] * (x.dim() - 1))


def mean_over_time(x: Tensor, steps: int) -> Tensor:
    """x [L·N, *S] → its mean over the time steps [N, *S]."""
    return unfold_time(x, steps).mean(dim=0)


def add_over_time(x: Tensor, per_image: Tensor) -> Tensor:
    """x [L·N, C, H, W] plus per_image [N, C], the same at every time step and pixel."""
    return x + over_time(per_image, len(x) // len(per_image))[:, :, None, None]
