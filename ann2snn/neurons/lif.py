"""The neuron layer of directly trained networks."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels import LIFRule, lif_scan
from .clock import Monitor, unfold_time


class LIFNeuron(nn.Module):
    """Integrate-and-fire neurons, leaky or not, that start every call at rest; see `kernels.lif_rule`.

    rule: the dynamics; its threshold may be changed at any time (threshold guidance) and is in no state dict.
    """

    monitor: Monitor | None = None  # receives the spikes of every call

    def __init__(self, rule: LIFRule, spike_steps: int) -> None:
        super().__init__()
        self.rule, self.spike_steps = rule, spike_steps

    def forward(self, current: Tensor) -> Tensor:
        """current [L·N, *S], time outermost → spikes {0, 1} of the same shape. Raises ValueError for other rows."""
        spikes = lif_scan(unfold_time(current, self.spike_steps), self.rule)
        if self.monitor is not None:
            self.monitor.record(self, spikes, is_count=False)
        return spikes.flatten(0, 1)

    def extra_repr(self) -> str:
        return f"{self.rule}, spike_steps={self.spike_steps}"
