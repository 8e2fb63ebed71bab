"""GroupNorm under the two schedules: what is normalized decides whether conversion is exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..kernels import NormRule, cumulative_norm
from .clock import Clock, Clocked, check_state_shape

FROZEN = ("frozen_mean", "frozen_var")


class SpikingGroupNorm(Clocked, nn.GroupNorm):
    """GroupNorm of a current that arrives over time.

    layer_sync: normalizes the window mean, as the ANN does.
    stream, cumulative: current_t = t·GN(mean x_1..t) − (t−1)·GN(mean x_1..t−1). The sum telescopes to T·GN(mean), so
    the total current is the ANN's whatever the order of arrival. While settling, means keep dividing by T.
    stream, per_step: GN(x_t), the published form; its mean is biased (shrunk).
    stream, frozen: the affine map a·x_t + b of the statistics kept for the image's bin of diffusion time; b flows
    only while the input is on, so that the total current is T·(a·mean + b).

    Buffers, once frozen: frozen_mean, frozen_var [bins, groups]; bins divide the diffusion steps equally.
    """

    frozen_mean: Tensor | None
    frozen_var: Tensor | None

    def __init__(self, clock: Clock, num_groups: int, channels: int) -> None:
        nn.GroupNorm.__init__(self, num_groups, channels)
        self.clock = clock
        for name in FROZEN:
            self.register_buffer(name, None)

    def forward(self, x: Tensor) -> Tensor:
        """x [L·N, C, H, W] → currents [L·N, C, H, W]."""
        clock = self.clock
        if clock.is_stream and clock.config.stream_norm == "cumulative":
            return self._cumulative(clock.unfold(x)).flatten(0, 1)
        if clock.is_stream and clock.config.stream_norm == "frozen":
            return self._frozen(clock.unfold(x)).flatten(0, 1)
        if clock.materialise:
            mean = clock.unfold(x).mean(0)
            return self._normalize(mean).repeat(clock.chunk_steps, 1, 1, 1)
        return self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def freeze(self, mean: Tensor, var: Tensor) -> None:
        """Keep mean and (biased) variance of the input, per bin and group [bins, groups]. Raises UserError."""
        for name, value in zip(FROZEN, (mean, var), strict=True):
            if value.dim() != 2 or value.shape[0] < 1 or value.shape[1] != self.num_groups:
                raise UserError(f"{name} is {list(value.shape)}, expected [bins, {self.num_groups}]")
            if not bool(torch.isfinite(value.to(self.weight.dtype)).all()):
                raise UserError(f"{name} holds values that are not finite")
        if mean.shape != var.shape:
            raise UserError(f"frozen_mean has {len(mean)} bins and frozen_var {len(var)}")
        if bool((var < 0).any()):
            raise UserError("frozen_var holds negative variances")
        for name, value in zip(FROZEN, (mean, var), strict=True):
            setattr(self, name, value.detach().to(self.weight, copy=True))

    def adopt(self, entries: dict[str, Tensor]) -> None:
        """Take frozen statistics from a state dict's entries of this layer, if there are any. Raises UserError."""
        found = [name for name in FROZEN if name in entries]
        if len(found) == 1:
            raise UserError(f"{found[0]} stands alone; frozen statistics are {' and '.join(FROZEN)}")
        if found:
            self.freeze(*(entries[name] for name in FROZEN))

    def check_frozen(self) -> None:
        """Raise UserError if there are no frozen statistics."""
        if self.frozen_mean is None or self.frozen_var is None:
            raise UserError(
                "--stream_norm=frozen needs statistics that this network does not carry: convert it with "
                "SNN_conversion.py --stream_norm=frozen, or call ann2snn.freeze_norms"
            )

    def affine_map(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Diffusion times t [N] → (scale [N, C], shift [N, C]) of the frozen norm scale·x + shift.

        A neuron behind it can take both in: see docs/theory.md, Frozen statistics. Raises UserError before `freeze`.
        """
        self.check_frozen()
        which = time_bin(t, len(self.frozen_mean), self.clock.diffusion_steps)
        width = self.num_channels // self.num_groups
        mean = self.frozen_mean[which].repeat_interleave(width, dim=1)  # [N, C]
        var = self.frozen_var[which].repeat_interleave(width, dim=1)
        scale = self.weight / (var + self.eps).sqrt()
        return scale, self.bias - mean * scale

    def _frozen(self, x: Tensor) -> Tensor:
        """x [L, N, C, H, W] → scale·x, plus shift while the input is on [L, N, C, H, W]."""
        clock = self.clock
        if clock.times is None:
            raise ValueError("the clock has no diffusion times: call the whole network, or set clock.times")
        scale, shift = self.affine_map(clock.times)
        current = x * scale[..., None, None]
        return current + shift[..., None, None] if clock.input_on else current

    def _cumulative(self, x: Tensor) -> Tensor:
        """x [L, N, C, H, W] → the increments of t·GN(running mean) [L, N, C, H, W]."""
        clock = self.clock
        if self.state is not None:
            check_state_shape(self.state.total.shape, x.shape[1:])
        currents, self.state = cumulative_norm(x, self.state, NormRule.of(self), clock.elapsed, clock.spike_steps)
        return currents


def time_bin(t: Tensor, bins: int, diffusion_steps: int) -> Tensor:
    """Diffusion times t [N], fractional or not → bin 0..bins−1 of equal width over 0..diffusion_steps, int64 [N]."""
    # t·bins is exact, so one correctly rounded division puts a time that is a bin's edge in the right bin.
    return (t.double() * bins / diffusion_steps).floor().long().clamp(0, bins - 1)
