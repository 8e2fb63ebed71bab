"""The spiking network's parts: same parameter names as the ANN's, so weights move over by a plain state-dict load."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quant import QuantLinear

from ..config import UNetConfig
from ..kernels import Spikes
from ..nets.parts import HEAD, TAIL, AnnParts, SinusoidalTime, SpikeConv2d
from ..neurons import Clock, IFNeuron, SpikingGroupNorm


class SpikingParts(AnnParts):
    """Neurons for activations, scheduled norms, and linear maps whose bias is a current that stops with the input."""

    def __init__(self, config: UNetConfig, clock: Clock) -> None:
        super().__init__(config)
        self.clock = clock

    def activation(self) -> nn.Module:
        return IFNeuron(self.clock)

    def norm(self, channels: int) -> nn.Module:
        return SpikingGroupNorm(self.clock, self.config.norm_groups, channels)

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1, edge: str = "") -> nn.Conv2d:
        kind = {HEAD: SpikingHead, TAIL: SpikingTail}.get(edge, SpikingConv2d)
        conv = kind(c_in, c_out, kernel, stride=stride, padding=kernel // 2, **self.weights(edge))
        conv.clock = self.clock
        return conv

    def linear(self, features_in: int, features_out: int) -> nn.Linear:
        linear = SpikingLinear(features_in, features_out, **self.weights())
        linear.clock = self.clock
        return linear

    def time_table(self) -> nn.Module:
        table = SpikingTime(self.config.diffusion_steps, self.config.ch)
        table.clock = self.clock
        return table


class _Synapses:
    """A linear map whose bias is a constant current: there during the T steps, absent while the network settles."""

    clock: Clock
    bias: Tensor

    def linear(self, x: Tensor | Spikes, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor | Spikes) -> Tensor:
        if self.clock.input_on:
            return self.linear(x, self.bias)
        skips = self.bias.device.type == "cpu" and not torch.is_grad_enabled()  # a GPU would have to wait for `busy`
        if torch.compiler.is_compiling() or not (skips or self.clock.busy is not None):
            return self.linear(x, None)
        busy = x.busy() if isinstance(x, Spikes) else torch.linalg.vector_norm(x.detach().flatten(1), dim=1) != 0
        self.clock.notice(busy)
        return self._of_rows(x, busy.nonzero().flatten()) if skips else self.linear(x, None)

    def _of_rows(self, x: Tensor | Spikes, rows: Tensor) -> Tensor:
        """The map of x, whose other rows are 0: layers fall silent one after the other, and images too. rows [B]."""
        if len(rows) == len(x):
            return self.linear(x, None)
        if len(rows) == 1:  # alone it would take another routine, which rounds differently: give it company
            rows = rows.repeat(2)
        some = self.linear(x[rows], None)
        out = some.new_zeros(len(x), *some.shape[1:])
        out[rows] = some
        return out


class SpikingConv2d(_Synapses, SpikeConv2d):
    """x [L·N, C, H, W] → [L·N, C', H', W']."""

    def linear(self, x: Tensor | Spikes, bias: Tensor | None) -> Tensor:
        return self.convolve(x, bias)


class SpikingHead(SpikingConv2d):
    """The image is a constant current, so its convolution is one as well: computed once for all steps of a chunk."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:  # settling: zeros
            return super().linear(x, bias)
        return super().linear(self.clock.unfold(x)[0], bias).repeat(self.clock.chunk_steps, 1, 1, 1)


class SpikingTail(SpikingConv2d):
    """Nobody reads more of the answer than its sum over time, so a chunk's spikes are summed first, and convolved once.

    Each of the chunk's steps then answers with their mean current.
    """

    def reads_spikes(self) -> bool:
        return False  # a mean is no whole number, and the ANN's tail is to answer alike

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:  # settling: few rows are busy, if any
            return super().linear(x, bias)
        return super().linear(self.clock.unfold(x).mean(0), bias).repeat(self.clock.chunk_steps, 1, 1, 1)


class SpikingLinear(_Synapses, QuantLinear):
    """x [L·N, F] → [L·N, F']."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.quantized_weight(), bias)


class SpikingTime(SinusoidalTime):
    """The time features are an input current as well."""

    clock: Clock

    def forward(self, t: Tensor) -> Tensor:
        if self.clock.input_on:
            return super().forward(t)
        return torch.zeros(len(t), self.dim, device=t.device, dtype=self.weight.dtype)
