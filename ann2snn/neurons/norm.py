"""GroupNorm under the two schedules: what is normalized decides whether conversion is exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clock import Clock, Clocked, check_state_shape


@dataclass
class NormState:
    """total [N, C, H, W]: summed input so far; emitted [N, C, H, W]: summed output so far."""

    total: Tensor
    emitted: Tensor


class SpikingGroupNorm(Clocked, nn.GroupNorm):
    """GroupNorm of a current that arrives over time.

    layer_sync: normalizes the window mean, as the ANN does.
    stream, cumulative: current_t = t·GN(mean x_1..t) − (t−1)·GN(mean x_1..t−1). The sum telescopes to T·GN(mean), so
    the total current is the ANN's whatever the order of arrival. While settling, means keep dividing by T.
    stream, per_step: GN(x_t), the published form; its mean is biased (shrunk).
    """

    def __init__(self, clock: Clock, num_groups: int, channels: int) -> None:
        nn.GroupNorm.__init__(self, num_groups, channels)
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        """x [L·N, C, H, W] → currents [L·N, C, H, W]."""
        clock = self.clock
        if clock.is_stream and clock.config.stream_norm == "cumulative":
            return self._cumulative(clock.unfold(x)).flatten(0, 1)
        if clock.materialise:
            mean = clock.unfold(x).mean(0)
            return self._normalize(mean).repeat(clock.chunk_steps, 1, 1, 1)
        return self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def _cumulative(self, x: Tensor) -> Tensor:
        """x [L, N, C, H, W] → the increments of t·GN(running mean) [L, N, C, H, W]."""
        clock = self.clock
        total = torch.cumsum(x, dim=0)
        if self.state is not None:
            check_state_shape(self.state.total.shape, x.shape[1:])
            total += self.state.total
        steps = torch.arange(1, len(x) + 1, device=x.device) + clock.elapsed
        steps = steps.clamp(max=clock.spike_steps).to(x.dtype).view(-1, 1, 1, 1, 1)
        emitted = self._normalize((total / steps).flatten(0, 1)).view_as(x) * steps
        before = torch.zeros_like(x[:1]) if self.state is None else self.state.emitted[None]
        self.state = NormState(total[-1].clone(), emitted[-1].clone())
        return torch.diff(emitted, dim=0, prepend=before)
