"""The integrate-and-fire neuron that replaces a quantized ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.functional import positive_scale, uniform_levels, uniform_values

from ..errors import UserError
from ..kernels import (
    Firing,
    IFRule,
    IFState,
    NormIFState,
    NormRule,
    Spikes,
    if_scan,
    norm_count,
    norm_scan,
    spread_counts,
)
from .clock import Clock, Clocked, check_state_shape


class IFNeuron(Clocked):
    """Integrate-and-fire neuron with threshold θ = `act_alpha`, subtract reset and initial charge θ/2.

    Parameters: act_alpha, the clip value of the quantized ReLU it replaces; and, once fine-tuning has asked for it,
    charge, the initial charge in units of θ. Both are [], or per channel ([C, 1, 1] for images, [C] for features).
    Events are unit spikes; they leave the layer scaled by θ, the explicit form of folding θ into the next layer's
    weight. Under `layer_sync` the layer integrates its whole window first, so its spike count is the quantizer's level.
    """

    charge: nn.Parameter | None
    unit_events: bool = False  # True where θ is in the weights of the layers that follow (convert/fold.py)

    def __init__(self, clock: Clock, alpha_init: float = 6.0) -> None:
        super().__init__()
        self.clock = clock
        self.act_alpha = nn.Parameter(torch.tensor(alpha_init))
        self.register_parameter("charge", None)

    @property
    def theta(self) -> Tensor:
        return positive_scale(self.act_alpha)

    @property
    def event_size(self) -> Tensor:
        """What an event is worth when it leaves the layer: θ, or 1 once θ has been folded into the next weights."""
        return torch.ones_like(self.act_alpha) if self.unit_events else self.theta

    def forward(self, current: Tensor) -> Tensor:
        """current [L·N, *S] → spikes·θ [L·N, *S]; on counts, the mean current [N, *S] → count·θ/T [N, *S]."""
        clock = self.clock
        if clock.is_stream:
            events, size = self._scan(clock.unfold(current)), self.event_size
            kept = torch.is_grad_enabled() or clock.monitor is not None  # by autograd, or by who listens
            return events * size if kept else events.mul_(size)
        mean = clock.unfold(current).mean(0) if clock.materialise else current
        count = self._window_count(mean)
        if clock.materialise:
            events = spread_counts(count, clock.spike_steps)  # [T, N, *S]
            self._report(events, is_count=False)
            return events.flatten(0, 1) * self.event_size
        self._report(count[None], is_count=True)
        return uniform_values(
            count, self.event_size, clock.bits
        )  # the quantized ReLU's own arithmetic: equal to the last bit

    def after_norm(self, norm: nn.GroupNorm, x: Tensor, whole: bool = False) -> Tensor | Spikes | None:
        """self(norm(x)) [L·N, C, H, W] without forming the current, x and norm as they are given to it.

        None where norm and neuron must run one after the other: see `_joins`. Wants no gradient.
        whole: answer with `Spikes`, if all are worth the same.
        """
        clock = self.clock
        if not self._joins(norm):
            return None
        self._check_channels(x[0])
        rule, size = NormRule.of(norm), self.event_size if clock.is_stream else self.event_size / clock.spike_steps
        heard = clock.monitor is not None  # and who listens is told unit events
        zero = self._zero() if whole and not heard and size.dim() == 0 else None
        charge = 0.5 if self.charge is None else self.charge
        firing = Firing.of(self.theta, charge, None if heard else size, zero)
        if clock.is_stream:
            x = clock.unfold(x)
            self.state = NormIFState.rest(x[0], rule) if self.state is None else self.state
            spikes = norm_scan(x, rule, firing, self._rule, self.state, clock.spike_steps)
        else:
            spikes = norm_count(x, rule, firing, clock.spike_steps)[None]
        self._report(spikes, is_count=not clock.is_stream)
        spikes = spikes.flatten(0, 1)
        if zero is not None:
            return Spikes(spikes, zero, size)
        return spikes * size if heard else spikes

    def _zero(self) -> int:
        """The byte that stands for no spike: bursts of up to ±127 fit, and counts up to 2^8 − 1."""
        return self._rule.burst if self.clock.is_stream and self._rule.signed else 0

    def _joins(self, norm: nn.Module) -> bool:
        """Whether norm and neuron can run as one, and have from the first step on: the cumulative norm or counts."""
        clock, config = self.clock, self.clock.config
        if norm.weight.dtype.itemsize < 4:  # half precision does not tell 200 from 200.5
            return False
        if not clock.is_stream:
            return clock.on_counts
        known = config.stream_norm == "cumulative" and config.if_neuron == "bounded" and not clock.smooth
        return known and norm.state is None and isinstance(self.state, (NormIFState, type(None)))

    def expand(self, shape: tuple[int, ...], *, thresholds: bool, charges: bool) -> None:
        """Give the layer a threshold and/or an initial charge of `shape`, of the values it has now."""
        if thresholds:
            self.act_alpha = nn.Parameter(self.act_alpha.detach().expand(shape).clone())
        if charges:
            now = 0.5 if self.charge is None else self.charge.detach()
            self.charge = nn.Parameter(torch.zeros(shape).to(self.act_alpha) + now)

    def adopt(self, entries: dict[str, Tensor]) -> None:
        """Make room for what a file holds: a charge, or a threshold per channel. Values are loaded afterwards."""
        for name in ("act_alpha", "charge"):
            held = getattr(self, name)
            if name in entries and (held is None or held.shape != entries[name].shape):
                setattr(self, name, nn.Parameter(torch.zeros_like(entries[name]).to(self.act_alpha)))

    def _window_count(self, mean: Tensor) -> Tensor:
        """The level 0..T [N, *S] that a mean current [N, *S] reaches when it is integrated as a whole."""
        self._check_channels(mean[0])
        if self.charge is None:
            return uniform_levels(mean, self.theta, self.clock.bits)
        window = self.clock.spike_steps
        return torch.floor(mean * (window / self.theta) + self.charge).clamp(0, window)

    def _check_channels(self, like: Tensor) -> None:
        """like [*S]. Raises UserError where a file's per-channel values are not one per channel."""
        for value in (self.act_alpha, self.charge):
            if value is not None and value.dim() and value.shape != (len(like), *[1] * (like.dim() - 1)):
                raise UserError(f"a neuron layer of {len(like)} channels has thresholds or charges {list(value.shape)}")

    @property
    def _rule(self) -> IFRule:
        config = self.clock.config
        return IFRule(config.if_neuron, config.signed, self.clock.smooth, config.burst)

    def _scan(self, current: Tensor) -> Tensor:
        """current [L, N, *S] → events [L·N, *S], continuing from the previous chunk's state."""
        theta = self.theta
        if self.state is None:
            self._check_channels(current[0, 0])
            self.state = IFState.rest(current[0], theta, 0.5 if self.charge is None else self.charge)
        check_state_shape(self.state.membrane.shape, current.shape[1:])
        events = if_scan(current, self.state, theta, self._rule, self.clock.spike_steps)
        self._report(events, is_count=False)
        return events.flatten(0, 1)

    def _report(self, events: Tensor, is_count: bool) -> None:
        if self.clock.monitor is not None:
            self.clock.monitor.record(self, events, is_count)

    def extra_repr(self) -> str:
        return f"theta={float(self.theta.mean()):.4g}, spike_steps={self.clock.spike_steps}"
