"""The integrate-and-fire neuron that replaces a quantized ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.functional import positive_scale, uniform_levels, uniform_values

from ..kernels import IFRule, IFState, if_scan, spread_counts
from .clock import Clock, Clocked, check_state_shape


class IFNeuron(Clocked):
    """Integrate-and-fire neuron with threshold θ = `act_alpha`, subtract reset and initial charge θ/2.

    Parameter: act_alpha [], the clip value of the quantized ReLU it replaces. Events are unit spikes; they leave the
    layer scaled by θ, the explicit form of folding θ into the next layer's weight. Under `layer_sync` the layer
    integrates its whole window first, so its spike count is the quantizer's level.
    """

    def __init__(self, clock: Clock, alpha_init: float = 6.0) -> None:
        super().__init__()
        self.clock = clock
        self.act_alpha = nn.Parameter(torch.tensor(alpha_init))

    @property
    def theta(self) -> Tensor:
        return positive_scale(self.act_alpha)

    def forward(self, current: Tensor) -> Tensor:
        """current [L·N, *S] → spikes·θ [L·N, *S]; on counts, the mean current [N, *S] → count·θ/T [N, *S]."""
        clock = self.clock
        if clock.is_stream:
            return self._scan(clock.unfold(current)) * self.theta
        mean = clock.unfold(current).mean(0) if clock.materialise else current
        count = uniform_levels(mean, self.theta, clock.bits)
        if clock.materialise:
            events = spread_counts(count, clock.spike_steps)  # [T, N, *S]
            self._report(events, is_count=False)
            return events.flatten(0, 1) * self.theta
        self._report(count[None], is_count=True)
        return uniform_values(
            count, self.theta, clock.bits
        )  # the quantized ReLU's own arithmetic: equal to the last bit

    def _scan(self, current: Tensor) -> Tensor:
        """current [L, N, *S] → events [L·N, *S], continuing from the previous chunk's state."""
        config = self.clock.config
        if self.state is None:
            self.state = IFState.rest(current[0], self.theta)
        check_state_shape(self.state.membrane.shape, current.shape[1:])
        rule = IFRule(config.if_neuron, config.signed)
        events = if_scan(current, self.state, self.theta, rule, self.clock.spike_steps)
        self._report(events, is_count=False)
        return events.flatten(0, 1)

    def _report(self, events: Tensor, is_count: bool) -> None:
        if self.clock.monitor is not None:
            self.clock.monitor.record(self, events, is_count)

    def extra_repr(self) -> str:
        return f"theta={float(self.theta):.4g}, spike_steps={self.clock.spike_steps}"
