"""A U-Net of spiking parts, run over its spike window: called like any denoiser, answers with the time average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from quant import quantized_once

from ..config import AUTO, FULL_PRECISION, DiffusionConfig, SpikingConfig, UNetConfig, check_int, require
from ..errors import UserError
from ..nets import UNet
from ..nets.parts import Resampling, ResBlock
from ..neurons import Clock, Clocked, IFNeuron, Monitor, SpikingGroupNorm
from .parts import SpikingParts

#: Of one feature map over a chunk of time steps; measured, and flat around the optimum (docs/performance.md).
CACHED_BYTES = 2**25
#: Steps that a network settling by itself runs before it looks for silence: trained ones settle in 2 or 3.
SETTLE_CHUNK = 4


class SpikingDenoiser(nn.Module):
    """Integrate-and-fire network f(x [N, C, H, W], t [N]) → [N, C, H, W].

    Input and biases are constant currents during T = 2^b − 1 steps; `stream` may then settle with the input off.
    `last_settle_steps`: settling steps in which something still fired or that were asked for, of the last call.
    `spike_chunk`: see `set_spike_chunk`.
    """

    spike_chunk: int = 0

    def __init__(self, config: UNetConfig, spiking: SpikingConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        require_quantized(config)
        self.clock = Clock(spiking, config.bits, diffusion_steps=config.diffusion_steps)
        self.unet = UNet(config, SpikingParts(config, self.clock), diffusion)
        self.last_settle_steps = 0
        # A correction crosses at most all layers, each of which corrects its count by at most T.
        self.settle_limit = self.clock.spike_steps * (1 + self.depth)

    @property
    def config(self) -> UNetConfig:
        return self.unet.config

    @property
    def diffusion(self) -> DiffusionConfig:
        return self.unet.diffusion

    @property
    def spiking(self) -> SpikingConfig:
        return self.clock.config

    @property
    def in_channels(self) -> int:
        return self.unet.in_channels

    @property
    def image_size(self) -> int:
        return self.unet.image_size

    def neurons(self) -> Iterator[tuple[str, IFNeuron]]:
        """(name inside the U-Net, neuron layer) in the order of registration."""
        for name, module in self.unet.named_modules():
            if isinstance(module, IFNeuron):
                yield name, module

    @property
    def depth(self) -> int:
        """Neuron layers in sequence on the longest path.

        Two per residual block, the tail, and the time embedding; a spike-driven network's resampling adds its own.
        """
        modules = list(self.unet.modules())
        resampling = sum(isinstance(m, Resampling) for m in modules) if self.config.spike_driven else 0
        return 2 * sum(isinstance(m, ResBlock) for m in modules) + resampling + 2

    @property
    def time_steps(self) -> str:
        """Latency of a network call in time steps, for people; what hardware adds that delays every layer by a step."""
        window, settle = self.clock.spike_steps, self.spiking.settle_steps
        if not self.clock.is_stream:
            return f"{self.depth} × {window}"
        return f"{window}{f' + {settle}' if settle else ''} (+ {self.depth} where every layer delays by a step)"

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        return self.unet.blocks()

    def set_spike_chunk(self, steps: int) -> None:
        """Run `stream` in chunks of at most `steps` time steps, one after another; 0: as many as suit the machine.

        A way of running, not a property of the network: the result is the same but for rounding, and memory grows with
        `steps` instead of T. Where a gradient is wanted, autograd keeps all steps in any case. Raises UserError.
        """
        steps = check_int(steps, "--spike_chunk")
        require(steps >= 0, f"--spike_chunk={steps}: use 1 or more time steps, or 0 for as many as suit the machine")
        self.spike_chunk = steps

    def reset(self) -> None:
        """Forget all neuron and norm state; done at every call."""
        for module in self.unet.modules():
            if isinstance(module, Clocked):
                module.reset()
        self.clock.elapsed, self.clock.times, self.clock.busy = 0, None, None

    def check_ready(self) -> None:
        """Raise UserError if the network is set to run on frozen norm statistics that it does not have."""
        if self.clock.is_stream and self.spiking.stream_norm == "frozen":
            for module in self.unet.modules():
                if isinstance(module, SpikingGroupNorm):
                    module.check_frozen()

    @contextlib.contextmanager
    def running_as(self, spiking: SpikingConfig | None = None, *, materialise: bool = False) -> Iterator[None]:
        """Run under another schedule, or with the spike trains of `layer_sync` materialised, inside the context."""
        previous = self.clock.config, self.clock.materialise
        self.clock.config, self.clock.materialise = spiking or previous[0], materialise
        try:
            yield
        finally:
            self.clock.config, self.clock.materialise = previous

    @contextlib.contextmanager
    def monitored(self, monitor: Monitor) -> Iterator[None]:
        """Send every neuron's events to `monitor` inside the context."""
        previous, self.clock.monitor = self.clock.monitor, monitor
        try:
            yield
        finally:
            self.clock.monitor = previous

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [N, C, H, W], t [N], integer or fractional → time-averaged prediction [N, C, H, W]."""
        self.reset()
        self.last_settle_steps = 0
        in_chunks = self.clock.is_stream and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        try:
            with quantized_once(self, many=False) if in_chunks else contextlib.nullcontext():
                return self._total(x, t) / self.clock.window
        finally:
            self.reset()  # do not hold a batch of activations between calls

    def _total(self, x: Tensor, t: Tensor) -> Tensor:
        """The whole call → output summed over its time steps [N, C, H, W]."""
        clock = self.clock
        if not clock.is_stream:  # a layer needs its whole window
            return self._chunk(x, t, clock.spike_steps if clock.materialise else 1, input_on=True)
        total = self._chunks(x, t, clock.spike_steps, input_on=True)
        return total + self._settle(x, t) if self.spiking.settle_steps else total

    def _chunks(self, x: Tensor, t: Tensor, steps: int, *, input_on: bool) -> Tensor:
        """`_chunk` of `steps` time steps, `spike_chunk` of them at once."""
        size = self._chunk_size(x) or steps
        total = self._chunk(x, t, min(size, steps), input_on=input_on)
        for done in range(size, steps, size):
            total = total + self._chunk(x, t, min(size, steps - done), input_on=input_on)
        return total

    def _chunk_size(self, x: Tensor) -> int:
        """Time steps to run at once: as set, or those of a batch x [N, C, H, W] whose largest feature map a CPU caches.

        0: no limit.
        """
        if self.spike_chunk:
            return self.spike_chunk
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return 0
        step = len(x) * self.config.ch * x.shape[2] * x.shape[3] * x.element_size()
        return max(1, CACHED_BYTES // step)

    def _chunk(self, x: Tensor, t: Tensor, steps: int, *, input_on: bool) -> Tensor:
        """Run `steps` time steps of the whole network, layer by layer → output summed over them [N, C, H, W]."""
        clock = self.clock
        clock.chunk_steps, clock.input_on, clock.times = steps, input_on, t
        rows = x if input_on else torch.zeros_like(x)
        out = self.unet(rows.repeat(steps, 1, 1, 1), t.repeat(steps))
        clock.elapsed += steps
        return clock.unfold(out).sum(0)

    def _settle(self, x: Tensor, t: Tensor) -> Tensor:
        """Run on without input: a fixed number of steps, or until no neuron fires."""
        wanted = self.spiking.settle_steps
        if wanted != AUTO:
            self.last_settle_steps = wanted
            return self._chunks(x, t, wanted, input_on=False)
        total = torch.zeros_like(x)
        clock = self.clock
        steps = min(self._chunk_size(x) or SETTLE_CHUNK, SETTLE_CHUNK, clock.spike_steps)
        if clock.monitor is not None:
            steps = 1  # whoever listens is to hear one silent step, not several
        while self.last_settle_steps <= self.settle_limit:
            clock.busy = torch.zeros(steps, dtype=torch.bool, device=x.device)
            total = total + self._chunk(x, t, steps, input_on=False)
            busy, clock.busy = clock.busy, None
            self.last_settle_steps += int(busy.sum())  # silence changes nothing: after it, all steps are silent
            if not busy[-1]:
                return total
        raise RuntimeError(f"the network still fires after {self.settle_limit} settling steps")


def require_quantized(config: UNetConfig) -> None:
    """Raise UserError for a full-precision network: it has no levels to count."""
    if config.bits == FULL_PRECISION:
        raise UserError("a full-precision network (--bit=32) has no spike count: train it with --bit=2 to 8")
