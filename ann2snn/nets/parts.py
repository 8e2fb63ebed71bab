"""The pieces a U-Net is assembled from, and the factory (`Parts`) that makes them as its configuration says."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FULL_PRECISION, UNetConfig
from ..kernels import (
    Levels,
    Neurons,
    NormRule,
    Pace,
    SpikeConv,
    Spikes,
    convolves_spikes,
    fake_quant,
    fits_spike_conv,
    norm_follow,
    upsample_nearest,
)
from ..neurons import BinnedBatchNorm, StepBatchNorm
from ..quant import QuantConv2d, QuantLinear, QuantReLU, uniform_quantize
from .group_norm import GroupNorm


class Parts:
    """Quantized ReLU, norms, (quantized) convolutions: the network that is trained."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config

    def weights(self, edge: bool = False) -> dict:
        """Weight precision of a layer; `edge`: the first and last convolution never go below 8 bits (APoT, 2020)."""
        config = self.config
        if edge and config.weight_bits != FULL_PRECISION:
            return {"bits": 8, "power": False, "keep_scale": True}
        return {"bits": config.weight_bits, "power": config.weight_quant == "apot", "keep_scale": True}

    def activation(self) -> nn.Module:
        return FusedReLU(self.config.bits)

    def norm(self, channels: int) -> nn.Module:
        if self.config.norm_bins > 1:
            return BinnedBatchNorm(channels, self.config.norm_bins)
        if self.config.norm == "batch":
            return StepBatchNorm(channels)
        return GroupNorm(self.config.norm_groups, channels)

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1, edge: bool = False) -> nn.Conv2d:
        kind = QuantConv2d if edge else SpikeConv2d
        return kind(c_in, c_out, kernel, stride=stride, padding=kernel // 2, **self.weights(edge))

    def linear(self, features_in: int, features_out: int) -> nn.Linear:
        return QuantLinear(features_in, features_out, **self.weights())

    def time_table(self) -> nn.Module:
        return SinusoidalTime(self.config.diffusion_steps, self.config.ch)


class FusedReLU(QuantReLU):
    """QuantReLU that is quantized, and differentiated, by one kernel each where the device has one."""

    def quantize(self, x: Tensor) -> Tensor:
        return super().quantize(x) if self.power else fake_quant(x, self.clip(), self.bits, uniform_quantize)

    def after_norm(self, norm: nn.GroupNorm, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | Spikes | None:
        """See `activate`: the time average of a spiking neuron's counts, as that computes it."""
        if not self.quantizes or not self.is_uniform or norm.weight.dtype.itemsize < 4:
            return None
        clip = self.clip()
        neurons = Neurons(Levels(clip / self.levels, 0, self.levels, scale=self.levels / clip))
        counts = norm_follow(x[None], NormRule.of(norm), None, neurons, (Pace(1.0),), dtype)[0]
        return Spikes(counts, 0, neurons.worth) if dtype == torch.uint8 else counts


class SpikeConv2d(QuantConv2d):
    """QuantConv2d that also reads `Spikes`, by a kernel, while its quantized weights are held for many calls.

    x [N, C_in, H, W], a tensor or spikes → [N, C_out, H', W'].
    """

    def reads_spikes(self) -> bool:
        """Whether it can be given spikes now."""
        held = self.held is not None and self.held.derived is not None
        return held and convolves_spikes(self.weight) and self._spike_conv() is not None

    def _spike_conv(self) -> SpikeConv | None:
        """None for weights that are no bytes, or that are not held for many calls."""
        derived = None if self.held is None else self.held.derived
        if derived is None:
            return None
        if "spike_conv" not in derived:
            integer_weight = self.whole_weight()
            if integer_weight is None or isinstance(self.padding, str) or not fits_spike_conv(integer_weight[0]):
                derived["spike_conv"] = None
            else:
                derived["spike_conv"] = SpikeConv(*integer_weight, self.stride, self.padding)
        return derived["spike_conv"]

    def convolve(self, x: Tensor | Spikes, bias: Tensor | None) -> Tensor:
        if isinstance(x, Spikes):
            spike_conv = self._spike_conv()
            if spike_conv is None:
                raise ValueError("a convolution is given spikes that it cannot read: ask `reads_spikes` first")
            return spike_conv(x, bias)
        return self._conv_forward(x, self.quantized_weight(), bias)

    def forward(self, x: Tensor | Spikes) -> Tensor:
        return self.convolve(x, self.bias)


def activate(
    norm: nn.Module, activation: nn.Module, x: Tensor, *readers: nn.Module, bins: Tensor | None = None
) -> Tensor | Spikes:
    """activation(norm(x)): by one kernel, if the activation has one, where no gradient is wanted and nobody listens.

    Such an activation has a method `after_norm(norm, x, dtype)`, which answers None where the two must run one by one.
    The answer may be `Spikes` (uint8) if all `readers`, the layers it goes to, read them, and it may have the type of
    autocast if they do nothing but cast it. bins: of the rows, int64 [N], where the norm asks for them.
    """
    after_norm = getattr(activation, "after_norm", None)
    if isinstance(norm, nn.GroupNorm) and after_norm is not None and not torch.is_grad_enabled():
        if not _heard(norm, activation):
            active = after_norm(norm, x, _type_for(readers, norm, x))
            if active is not None:
                return active
    return activation(norm(x) if bins is None else norm(x, bins))


def _heard(*modules: nn.Module) -> bool:
    """Whether somebody listens to one of the modules by a hook, or to all there are."""
    every = nn.modules.module
    return bool(every._global_forward_hooks or every._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )


def _type_for(readers: tuple[nn.Module, ...], norm: nn.GroupNorm, x: Tensor) -> torch.dtype | None:
    """In what to answer; None: as the norm's parameters."""
    if not readers or _heard(*readers):
        return None
    # A network that has diverged is to answer NaN, which bytes cannot tell from silence.
    if all(_reads_spikes(reader) for reader in readers):
        if bool(torch.isfinite(x.sum() + norm.weight.sum() + norm.bias.sum())):
            return torch.uint8
    casts = torch.is_autocast_enabled(x.device.type) and norm.weight.dtype == torch.float32
    if casts and all(isinstance(reader, nn.Conv2d) or _is_nothing(reader) for reader in readers):
        return torch.get_autocast_dtype(x.device.type)
    return None


def _reads_spikes(layer: nn.Module) -> bool:
    reads_spikes = getattr(layer, "reads_spikes", None)
    return reads_spikes is not None and reads_spikes()


def _is_nothing(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Dropout) and not layer.training


class PreActivation(nn.Sequential):
    """A norm, an activation and what follows them: the pre-activation order. bins: see `activate`."""

    def forward(self, x: Tensor, bins: Tensor | None = None) -> Tensor:
        norm, activation, *readers = self
        active: Any = activate(norm, activation, x, *readers, bins=bins)  # spikes only where all of these read them
        for layer in readers:
            active = layer(active)
        return active


class BatchDropout(nn.Dropout):
    """Dropout whose masks do not depend on how a batch is split among processes or accumulated in parts.

    While `part` = (first row, rows of the whole batch) is set, the mask of the whole batch is drawn and the rows from
    the first on are used. Whoever sets it seeds the generator alike for every part. With spike time folded into the
    batch, rows are counted in each of `steps` time steps.
    """

    part: tuple[int, int] | None = None

    def __init__(self, p: float, steps: int = 1) -> None:
        super().__init__(p)
        self.steps = steps

    def reads_spikes(self) -> bool:
        return not self.training

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.part is None or self.p == 0:
            return super().forward(x)
        first, total = self.part
        keep = torch.empty(self.steps, total, *x.shape[1:], dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * keep[:, first : first + len(x) // self.steps].flatten(0, 1).div_(1 - self.p)


class SinusoidalTime(nn.Module):
    """Sinusoidal features of diffusion time (Vaswani et al., 2017, section 3.5), sine and cosine interleaved.

    They are computed, so `t` may be fractional. The table of all integer times is kept as buffer `weight`
    [diffusion_steps, dim] only because the reference's checkpoints carry it; it is never read.
    """

    weight: Tensor

    def __init__(self, diffusion_steps: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("weight", self.features(torch.arange(diffusion_steps)))

    def features(self, t: Tensor) -> Tensor:
        """t [N] → float32 [N, dim]."""
        # float32 throughout, in the reference's order of operations: its low-bit networks react to the last bits.
        frequency = torch.exp(-(torch.arange(0, self.dim, 2, device=t.device) / self.dim * math.log(10000)))
        angle = t.to(torch.float32)[:, None] * frequency[None, :]
        return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)

    def forward(self, t: Tensor) -> Tensor:
        """t [N], integer or fractional → [N, dim] in the network's dtype."""
        return self.features(t).to(self.weight.dtype)


class TimeEmbedding(nn.Module):
    """t [N] → embedding [N, 4·ch]. Submodule names are the reference's."""

    def __init__(self, ch: int, parts: Parts) -> None:
        super().__init__()
        self.timembedding = nn.Sequential(
            parts.time_table(),
            parts.linear(ch, 4 * ch),
            parts.activation(),
            parts.linear(4 * ch, 4 * ch),
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.timembedding(t)


class Resampling(nn.Module):
    """Base of down- and upsampling: a 3×3 convolution of the residual stream or, `spike_driven`, of its activation."""

    stride = 1

    def __init__(self, channels: int, parts: Parts, spike_driven: bool = False) -> None:
        super().__init__()
        self.norm = parts.norm(channels) if spike_driven else nn.Identity()
        self.act = parts.activation() if spike_driven else nn.Identity()
        self.main = parts.conv(channels, channels, 3, stride=self.stride)

    def asked(self, bins: Tensor | None) -> Tensor | None:
        """`bins`, where there is a norm."""
        return None if isinstance(self.norm, nn.Identity) else bins


class DownSample(Resampling):
    """Halve height and width by a strided 3×3 convolution."""

    stride = 2

    def forward(self, x: Tensor, temb: Tensor, bins: Tensor | None = None) -> Tensor:
        return self.main(activate(self.norm, self.act, x, self.main, bins=self.asked(bins)))  # [N, C, H/2, W/2]


class UpSample(Resampling):
    """Double height and width (nearest neighbour), then a 3×3 convolution."""

    def forward(self, x: Tensor, temb: Tensor, bins: Tensor | None = None) -> Tensor:
        # Before the copying: one neuron for the four pixels that repeat it.
        h = activate(self.norm, self.act, x, self.main, bins=self.asked(bins))
        h = h.map(upsample_nearest) if isinstance(h, Spikes) else upsample_nearest(h)
        return self.main(h)  # [N, C, 2H, 2W]


class ResBlock(nn.Module):
    """Residual block of DDPM (Ho et al., 2020, appendix B) without attention; ReLU-like activation.

    The residual stream (the sum) stays real-valued in a spiking network as well.
    """

    def __init__(self, c_in: int, c_out: int, temb_dim: int, dropout: float, parts: Parts) -> None:
        super().__init__()
        self.block1 = PreActivation(parts.norm(c_in), parts.activation(), parts.conv(c_in, c_out, 3))
        self.temb_proj = nn.Sequential(parts.activation(), parts.linear(temb_dim, c_out))
        self.block2 = PreActivation(
            parts.norm(c_out), parts.activation(), BatchDropout(dropout), parts.conv(c_out, c_out, 3)
        )
        self.shortcut = nn.Identity() if c_in == c_out else parts.conv(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor, bins: Tensor | None = None) -> Tensor:
        """x [N, C_in, H, W], temb [N, 4·ch], bins [N] (see `activate`) → [N, C_out, H, W]."""
        h = self.block1(x, bins)
        h = h + self.temb_proj(temb)[:, :, None, None]
        return self.block2(h, bins) + self.shortcut(x)


class SpikeDrivenResBlock(ResBlock):
    """The same layers and names, but a projecting shortcut reads block1's activation, as its 3×3 convolution does.

    He et al., "Identity Mappings in Deep Residual Networks", 2016, where the projection follows the pre-activation.
    An identity shortcut still carries the residual stream itself: it is a sum, without weights.
    """

    def forward(self, x: Tensor, temb: Tensor, bins: Tensor | None = None) -> Tensor:
        """x [N, C_in, H, W], temb [N, 4·ch], bins [N] (see `activate`) → [N, C_out, H, W]."""
        norm, activation, conv = self.block1
        projects = not isinstance(self.shortcut, nn.Identity)
        active = activate(norm, activation, x, conv, *([self.shortcut] if projects else []), bins=bins)
        h = conv(active) + self.temb_proj(temb)[:, :, None, None]
        return self.block2(h, bins) + self.shortcut(active if projects else x)
