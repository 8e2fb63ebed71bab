"""The spiking network's parts: same parameter names as the ANN's, so weights move over by a plain state-dict load."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quant import QuantConv2d, QuantLinear

from ..config import UNetConfig
from ..nets.parts import AnnParts, SinusoidalTime
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

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1, edge: bool = False) -> nn.Conv2d:
        conv = SpikingConv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, **self.weights(edge))
        conv.clock = self.clock
        return conv

    def linear(self, features_in: int, features_out: int) -> nn.Linear:
        linear = SpikingLinear(features_in, features_out, **self.weights(False))
        linear.clock = self.clock
        return linear

    def time_table(self) -> nn.Module:
        table = SpikingTime(self.config.diffusion_steps, self.config.ch)
        table.clock = self.clock
        return table


class _BiasCurrent:
    """A bias is a constant current: there during the T steps, absent while the network settles."""

    clock: Clock
    bias: Tensor

    def bias_current(self) -> Tensor | None:
        return self.bias if self.clock.input_on else None


class SpikingConv2d(_BiasCurrent, QuantConv2d):
    """x [L·N, C, H, W] → [L·N, C', H', W']."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.quantized_weight(), self.bias_current(), self.stride, self.padding)


class SpikingLinear(_BiasCurrent, QuantLinear):
    """x [L·N, F] → [L·N, F']."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias_current())


class SpikingTime(SinusoidalTime):
    """The time features are an input current as well."""

    clock: Clock

    def forward(self, t: Tensor) -> Tensor:
        if self.clock.input_on:
            return super().forward(t)
        return torch.zeros(len(t), self.dim, device=t.device, dtype=self.weight.dtype)
