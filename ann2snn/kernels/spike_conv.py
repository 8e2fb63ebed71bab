"""Convolution of spikes by weights of few levels, in integers: bytes times bytes, summed exactly.

For CPUs with 8-bit dot products (VNNI), through oneDNN. Sums of whole numbers do not depend on their order, so they are
the same for every batch and number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .choice import preferred

#: Largest byte, and so the largest `zero` + number of spikes.
LARGEST_BYTE = 255
#: Largest magnitude of an integer weight, and the most of them that a 32-bit sum has room for.
LARGEST_WEIGHT = 127
MOST_WEIGHTS = 2**31 // (LARGEST_BYTE * LARGEST_WEIGHT)


@dataclass(frozen=True)
class Spikes:
    """Whole numbers of spikes as bytes [N, C, H, W], worth (bytes − zero) · size; size []."""

    bytes: Tensor
    zero: int
    size: Tensor

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, rows: Tensor) -> Spikes:
        return self.map(lambda values: values[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Spikes:
        """The same spikes elsewhere, by a function that moves or copies values."""
        return replace(self, bytes=change(self.bytes))

    def busy(self) -> Tensor:
        """Which rows hold a spike [N], bool."""
        return (self.bytes != self.zero).flatten(1).any(1)


class SpikeConv:
    """spikes → conv(spikes, integers · step), zero-padded.

    integers [C_out, C_in, kH, kW], whole numbers of any type that `fits_spike_conv`; step [].
    """

    def __init__(self, integers: Tensor, step: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        self.integers, self.step = integers.to(torch.int8), step
        self.sides = list(stride), list(padding), [1, 1], 1  # dilation, groups
        self._packed: dict[int, Tensor] = {}
        self._scales = torch.ones(len(integers)), torch.zeros(len(integers), dtype=torch.int64)

    def __call__(self, spikes: Spikes, bias: Tensor | None = None) -> Tensor:
        """spikes [N, C_in, H, W], bias [C_out] → [N, C_out, H', W'] of the type of `step`, contiguous."""
        sums = self._sums(spikes)
        out = torch.empty(sums.shape, dtype=self.step.dtype)  # `sums` has channels innermost
        torch.mul(sums, self.step * spikes.size, out=out)
        return out if bias is None else out.add_(bias.view(-1, 1, 1))

    def _sums(self, spikes: Spikes) -> Tensor:
        """The convolution in units of step · size [N, C_out, H', W']: whole numbers, as float32."""
        if spikes.zero not in self._packed:
            self._packed[spikes.zero] = torch.ops.onednn.qconv_prepack(
                self.integers, self._scales[0], 1.0, spikes.zero, *self.sides
            )
        weights = self._packed[spikes.zero], *self._scales, None
        output: tuple[object, ...] = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qconv2d_pointwise(spikes.bytes, 1.0, spikes.zero, *weights, *self.sides, *output)


def spike_conv_reference(conv: SpikeConv, spikes: Spikes, bias: Tensor | None = None) -> Tensor:
    """See `SpikeConv`, whose answer is the same to the last bit."""
    stride, padding, *_ = conv.sides
    sums = F.conv2d(spikes.bytes.double() - spikes.zero, conv.integers.double(), stride=stride, padding=padding)
    out = sums.to(conv.step.dtype) * (conv.step * spikes.size)
    return out if bias is None else out + bias.view(-1, 1, 1)


def convolves_spikes(weight: Tensor) -> bool:
    """Whether a `SpikeConv` is the quicker way for weights like `weight` here, and as precise."""
    if torch.compiler.is_compiling() or preferred() == "torch":
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _works()


def fits_spike_conv(integers: Tensor) -> bool:
    """Whether weights [C_out, C_in, kH, kW] fit into bytes, and their sums into 32 bits. NaN does not."""
    return integers[0].numel() <= MOST_WEIGHTS and bool((integers.abs() <= LARGEST_WEIGHT).all())


@functools.cache
def _works() -> bool:
    """Whether this CPU has the instructions, and this torch the operators, and they answer rightly at the extremes."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    values = torch.tensor([[0, LARGEST_BYTE], [LARGEST_BYTE, LARGEST_BYTE]], dtype=torch.uint8).expand(2, 64, 2, 2)
    spikes = Spikes(values.contiguous(), 1, torch.tensor(0.3))
    integers = torch.full((16, 64, 3, 3), LARGEST_WEIGHT)
    integers[::3] *= -1
    conv = SpikeConv(integers, torch.tensor(0.7), (1, 1), (1, 1))
    try:
        return torch.equal(conv(spikes, torch.arange(16.0)), spike_conv_reference(conv, spikes, torch.arange(16.0)))
    except (RuntimeError, AttributeError, TypeError):  # operators that are missing, or are called in another way
        return False
