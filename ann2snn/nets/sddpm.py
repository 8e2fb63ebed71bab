"""The spiking U-Net of SDDPM (Cao et al., arXiv 2306.17046), and with TSM that of SDM (arXiv 2408.16467).

Pre-spike residuals: a block adds real-valued currents, and the next block's neurons spike. Names are those of the
published checkpoints, so that they load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import DiffusionConfig, require
from ..kernels import upsample_nearest
from ..neurons import LIFNeuron, StepBatchNorm, unfold_time
from .direct import DirectConfig, DirectDenoiser, StepConv, add_over_time, over_time
from .parts import BatchDropout, SinusoidalTime

READOUT_DECAY = 0.8  # of the membrane that adds up the output, whatever the neurons' own decay
TAIL_GAIN = 1e-5  # Xavier gain of the last convolution: the network starts by predicting next to nothing

#: Name → what is otherwise than in the published network. Parameters keep their names and shapes.
CORRECTIONS = {
    "shortcut": "shortcut convolutions read the block's spikes, not its real-valued input: they accumulate",
    "tail": "neurons instead of Swish before the last convolution: it reads spikes",
    "readout": "the readout's weights add up to 1, so that the output's scale does not depend on the time steps",
    "dropout": "--dropout acts, between the second neuron and the second convolution of a block",
    "init": "the side branch starts silent instead of adding noise; with TSM, so does the last convolution",
}


@dataclass(frozen=True)
class SDDPMConfig(DirectConfig):
    """SDDPM: defaults are the published CIFAR-10 network, with 66,696,413 parameters.

    tsm: every 2-D convolution has a learned factor per time step (SDM). corrections: names of `CORRECTIONS`.
    """

    arch: ClassVar[str] = "sddpm"

    tsm: bool = False
    corrections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.tsm, bool), f"--tsm={self.tsm}: use True or False")
        object.__setattr__(self, "corrections", tuple(sorted(str(name) for name in self.corrections)))
        unknown = [name for name in self.corrections if name not in CORRECTIONS]
        require(
            not unknown and len(set(self.corrections)) == len(self.corrections),
            f"--corrections={','.join(self.corrections)[:80]}: use any of {', '.join(CORRECTIONS)}, each once",
        )


class TSMConv(nn.Module):
    """Temporal-wise spiking mechanism: y_s = p_s·(W * x_s + b), one learned p_s per time step, 1 at first."""

    def __init__(self, conv: nn.Conv2d, steps: int) -> None:
        super().__init__()
        self.tsmconv = conv
        self.tsmp = nn.Parameter(torch.ones(steps, 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [L·N, C, H, W] → [L·N, C', H', W']."""
        return self.scale(self.tsmconv(x))

    def scale(self, y: Tensor) -> Tensor:
        return (unfold_time(y, len(self.tsmp)) * self.tsmp).flatten(0, 1)


class SDDPMLayers:
    """Makes the layers of one network."""

    def __init__(self, config: SDDPMConfig) -> None:
        self.config = config

    def conv(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        return TSMConv(conv, self.config.spike_steps) if self.config.tsm else conv

    def norm(self, channels: int) -> StepBatchNorm:
        return StepBatchNorm(channels)

    def neuron(self) -> LIFNeuron:
        return LIFNeuron(self.config.rule, self.config.spike_steps)


class FrozenTime(SinusoidalTime):
    """`SinusoidalTime` whose table counts as a parameter, though it never learns: so do published networks count."""

    def __init__(self, diffusion_steps: int, dim: int) -> None:
        super().__init__(diffusion_steps, dim)
        table = self.weight
        del self.weight
        self.weight = nn.Parameter(table, requires_grad=False)


class TimeEmbedding(nn.Module):
    """t [N] → embedding [N, 4·ch], real-valued."""

    def __init__(self, diffusion_steps: int, ch: int) -> None:
        super().__init__()
        self.timembedding = nn.Sequential(
            FrozenTime(diffusion_steps, ch), nn.Linear(ch, 4 * ch), nn.SiLU(), nn.Linear(4 * ch, 4 * ch)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.timembedding(t)


class SDDPMBlock(nn.Module):
    """Neuron, convolution, norm, twice, the time embedding added in between; the sum with the input is not spiked."""

    def __init__(self, layers: SDDPMLayers, c_in: int, c_out: int) -> None:
        super().__init__()
        config = layers.config
        self.spiking_shortcut = "shortcut" in config.corrections
        self.neuron1 = layers.neuron()
        self.conv1, self.bn1 = layers.conv(c_in, c_out), layers.norm(c_out)
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.ch, c_out))
        self.neuron2 = layers.neuron()
        self.dropout = BatchDropout(config.dropout if "dropout" in config.corrections else 0.0, config.spike_steps)
        self.conv2, self.bn2 = layers.conv(c_out, c_out), layers.norm(c_out)
        self.shortcut = nn.Identity() if c_in == c_out else layers.conv(c_in, c_out, kernel=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x [L·N, C, H, W], temb [N, 4·ch] → [L·N, C', H, W]."""
        spikes = self.neuron1(x)
        h = add_over_time(self.bn1(self.conv1(spikes)), self.temb_proj(temb))
        h = self.bn2(self.conv2(self.dropout(self.neuron2(h))))
        spiked = self.spiking_shortcut and not isinstance(self.shortcut, nn.Identity)
        return h + self.shortcut(spikes if spiked else x)


class Resampling(nn.Module):
    """Neuron, change of resolution, convolution, norm; deaf to the time embedding."""

    def __init__(self, layers: SDDPMLayers, channels: int, up: bool) -> None:
        super().__init__()
        self.neuron, self.up = layers.neuron(), up
        self.conv, self.bn = layers.conv(channels, channels, stride=1 if up else 2), layers.norm(channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        spikes = self.neuron(x)
        return self.bn(self.conv(upsample_nearest(spikes) if self.up else spikes))


class SDDPM(DirectDenoiser):
    """Spiking denoiser f(x [N, C, H, W], t [N]) → [N, C, H, W]; t may be fractional.

    The image is a constant current; the output is a leaky sum over the time steps, see `readout`.
    """

    config: SDDPMConfig

    def __init__(self, config: SDDPMConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__(config, diffusion)
        layers, ch, c = SDDPMLayers(config), config.ch, config.in_channels
        self.time_embedding = TimeEmbedding(config.diffusion_steps, ch)
        self.conv, self.bn = layers.conv(c, ch), layers.norm(ch)
        self.neuron = layers.neuron()
        self.conv_identity, self.bn_identity = layers.conv(ch, ch), layers.norm(ch)
        self.downblocks, self.middleblocks, self.upblocks = _u_shape(layers)
        self.tail_bn = layers.norm(ch)
        self.tail_neuron = layers.neuron() if "tail" in config.corrections else nn.SiLU()
        self.tail_conv = layers.conv(ch, c)
        self.T_output_layer, self.last_bn = StepConv(c, c, 3), layers.norm(c)
        self.initialize()

    def initialize(self) -> None:
        """Xavier-uniform weights, zero biases; `conv_identity` and the side branch keep PyTorch's defaults."""
        kept = set(self.conv_identity.modules())
        tail = set(self.tail_conv.modules())
        corrected = "init" in self.config.corrections
        near_zero = corrected or not self.config.tsm
        if corrected:  # else its norm brings it to unit variance as soon as the tail has grown a little
            nn.init.zeros_(self.last_bn.weight)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in kept:
                nn.init.xavier_uniform_(module.weight, gain=TAIL_GAIN if module in tail and near_zero else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        steps = self.spike_steps
        temb = self.time_embedding(t)
        h = self._stem(x)
        skips = [h]
        for block in self.downblocks:
            h = self.run_block(block, h, temb)
            skips.append(h)
        for block in self.middleblocks:
            h = self.run_block(block, h, temb)
        for block in self.upblocks:
            if isinstance(block, SDDPMBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run_block(block, h, temb)
        h = self.tail_conv(self.tail_neuron(self.tail_bn(h)))
        h = h + F.silu(self.last_bn(self.T_output_layer(h)))
        return self.readout(unfold_time(h, steps))

    def _stem(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] → currents [L·N, ch, H, W]. The input does not change, so the convolution runs once."""
        conv, steps = self.conv, self.spike_steps
        if isinstance(conv, TSMConv):
            currents = conv.scale(over_time(conv.tsmconv(x), steps))
        else:
            currents = over_time(conv(x), steps)
        return self.bn_identity(self.conv_identity(self.neuron(self.bn(currents))))

    def readout(self, h: Tensor) -> Tensor:
        """h [L, N, C, H, W] → Σ_s 0.8^(L−1−s)·h_s: the membrane of a leaky neuron that never fires [N, C, H, W]."""
        steps = len(h)
        weights = READOUT_DECAY ** torch.arange(steps - 1, -1, -1, device=h.device, dtype=torch.float64)
        if "readout" in self.config.corrections:
            weights = weights / weights.sum()
        return (h * weights.to(h.dtype).view(-1, 1, 1, 1, 1)).sum(0)


def with_tsm(net: SDDPM, spike_steps: int | None = None) -> SDDPM:
    """The network with a factor of 1 per convolution and time step: SDM's start, with SDDPM's weights.

    spike_steps: of the new network, by default those of the old one; with these it answers as `net` does, to the bit.
    Raises UserError for a network that has TSM, or for time steps out of range.
    """
    require(not net.config.tsm, "the network has TSM already")
    config = replace(net.config, tsm=True, spike_steps=net.spike_steps if spike_steps is None else spike_steps)
    new = SDDPM(config, net.diffusion).to(next(net.parameters()))
    convolutions = {name for name, module in net.named_modules() if type(module) is nn.Conv2d}
    state = {}
    for name, value in net.state_dict().items():
        owner, entry = name.rsplit(".", 1)
        state[f"{owner}.tsmconv.{entry}" if owner in convolutions else name] = value
    mismatch = new.load_state_dict(state, strict=False)
    assert not mismatch.unexpected_keys and all(name.endswith(".tsmp") for name in mismatch.missing_keys)
    return new.train(net.training)


def _u_shape(layers: SDDPMLayers) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """(way down, middle, way up); before every residual block of the way up a skip is concatenated."""
    config = layers.config
    widths = [config.ch * mult for mult in config.ch_mult]
    down, up = nn.ModuleList(), nn.ModuleList()
    skips, width = [config.ch], config.ch
    for level, c_out in enumerate(widths):
        for _ in range(config.num_res_blocks):
            down.append(SDDPMBlock(layers, width, c_out))
            width = c_out
            skips.append(width)
        if level != len(widths) - 1:
            down.append(Resampling(layers, width, up=False))
            skips.append(width)
    middle = nn.ModuleList([SDDPMBlock(layers, width, width), SDDPMBlock(layers, width, width)])
    for level, c_out in reversed(list(enumerate(widths))):
        for _ in range(config.num_res_blocks + 1):
            up.append(SDDPMBlock(layers, width + skips.pop(), c_out))
            width = c_out
        if level:
            up.append(Resampling(layers, width, up=True))
    return down, middle, up
