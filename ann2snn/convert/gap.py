"""How far a spiking network is from its quantized ANN, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import SpikingConfig
from ..nets import UNet
from .spiking import SpikingDenoiser

PREDICTION = "prediction"  # the row of the network's output


@dataclass(frozen=True)
class BlockGap:
    """error: ‖mean over time of the SNN's output − the ANN's‖ / ‖the ANN's‖, over the whole batch.

    firing_rate: spikes of either sign per neuron and window step (T steps; settling adds spikes, not steps).
    negative_share: share of the spikes that are negative. Both are nan for a block without neurons.
    """

    block: str
    error: float
    firing_rate: float
    negative_share: float


@dataclass(frozen=True)
class GapReport:
    """Gap of every block in data-flow order, and of the network's output (block "prediction")."""

    spiking: SpikingConfig
    blocks: tuple[BlockGap, ...]
    prediction: BlockGap
    spikes_per_image: float
    settle_steps: int
    name: str = ""

    def rows(self) -> list[BlockGap]:
        return [*self.blocks, self.prediction]

    @property
    def label(self) -> str:
        """Short name of the run mode for tables, such as "stream +2"."""
        return f"{self.name} {self.spiking.label}".strip()

    def to_dict(self) -> dict:
        """Plain values for JSON; nan becomes None."""
        rows = [{k: None if v != v else v for k, v in dataclasses.asdict(row).items()} for row in self.rows()]
        return {
            "label": self.label,
            "spiking": self.spiking.to_dict(),
            "spikes_per_image": self.spikes_per_image,
            "settle_steps": self.settle_steps,
            "blocks": rows,
        }


class SpikeTotals:
    """Monitor that counts events per neuron layer."""

    def __init__(self) -> None:
        self.positive: dict[nn.Module, float] = {}
        self.negative: dict[nn.Module, float] = {}
        self.neurons: dict[nn.Module, int] = {}  # per image

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        self.positive[neuron] = self.positive.get(neuron, 0.0) + float(events.clamp(min=0).sum(dtype=torch.float64))
        self.negative[neuron] = self.negative.get(neuron, 0.0) - float(events.clamp(max=0).sum(dtype=torch.float64))
        self.neurons[neuron] = events[0, 0].numel()

    def rates(self, layers: Iterable[nn.Module], steps: int) -> tuple[float, float]:
        """(firing rate, share of negative spikes) over `layers`; nan where there is nothing to divide by.

        steps: window steps recorded in all, images × T.
        """
        layers = [layer for layer in layers if layer in self.neurons]
        spikes = sum(self.positive[m] + self.negative[m] for m in layers)
        sites = sum(self.neurons[m] for m in layers) * steps
        negative = sum(self.negative[m] for m in layers)
        return (spikes / sites if sites else float("nan")), (negative / spikes if spikes else float("nan"))

    def total(self) -> float:
        return sum(self.positive.values()) + sum(self.negative.values())


class GapMeter:
    """Accumulates the gap of `snn` to `ann` over batches, each network on its own inputs, block by block.

    `spiking` overrides how the SNN runs. Both networks should be in eval mode and of one dtype; use float64 to judge
    equality, since a low-bit network turns float32's last digits into visible differences.
    """

    def __init__(self, ann: UNet, snn: SpikingDenoiser, spiking: SpikingConfig | None = None) -> None:
        self.ann, self.snn, self.spiking = ann, snn, spiking or snn.spiking
        self.totals = SpikeTotals()
        self.squares: dict[str, tuple[float, float]] = {}  # block → Σ difference², Σ expected²
        self.images = 0
        self.settle_steps = 0

    @torch.no_grad()
    def update(self, x: Tensor, t: Tensor) -> None:
        """x [N, C, H, W], t [N]."""
        with record_outputs(self.ann) as expected:
            target = self.ann(x, t)
        snn = self.snn
        with snn.running_as(self.spiking), snn.monitored(self.totals), record_outputs(snn) as actual:
            prediction = snn(x, t)
            window = snn.clock.window
        for name, value in expected.items():
            self._add(name, actual[name] / window, value)
        self._add(PREDICTION, prediction, target)
        self.images += len(x)
        self.settle_steps = max(self.settle_steps, snn.last_settle_steps)

    def _add(self, name: str, actual: Tensor, expected: Tensor) -> None:
        difference, scale = self.squares.get(name, (0.0, 0.0))
        difference += float((actual.double() - expected.double()).square().sum())
        scale += float(expected.double().square().sum())
        self.squares[name] = difference, scale

    def report(self) -> GapReport:
        """The gap so far. Raises ValueError before the first update."""
        if not self.images:
            raise ValueError("no batch has been measured yet")
        steps = self.images * self.snn.clock.spike_steps
        blocks = [
            BlockGap(name, self._error(name), *self.totals.rates(module.modules(), steps))
            for name, module in self.snn.blocks()
        ]
        overall = self.totals.rates(self.totals.neurons, steps)
        prediction = BlockGap(PREDICTION, self._error(PREDICTION), *overall)
        spikes = self.totals.total() / self.images
        return GapReport(self.spiking, tuple(blocks), prediction, spikes, self.settle_steps)

    def _error(self, name: str) -> float:
        difference, scale = self.squares[name]
        return math.sqrt(difference / scale) if scale > 0 else math.sqrt(difference)


def measure_gap(
    ann: UNet, snn: SpikingDenoiser, x: Tensor, t: Tensor, spiking: SpikingConfig | None = None, batch_size: int = 16
) -> GapReport:
    """The gap on x [N, C, H, W], t [N], in batches; see `GapMeter`."""
    meter = GapMeter(ann, snn, spiking)
    for start in range(0, len(x), batch_size):
        meter.update(x[start : start + batch_size], t[start : start + batch_size])
    return meter.report()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖₂ / ‖expected‖₂ in float64; 0 when both are zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).norm()
    scale = expected.norm()
    return float(difference / scale) if scale > 0 else float(difference)


@contextlib.contextmanager
def record_outputs(net: UNet | SpikingDenoiser) -> Iterator[dict[str, Tensor]]:
    """Collect every block's output, summed over time steps [N, …], while the context is open."""
    clock = net.clock if isinstance(net, SpikingDenoiser) else None
    outputs: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            value = output if clock is None else clock.unfold(output).sum(0)
            outputs[name] = outputs[name] + value if name in outputs else value

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in net.blocks()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
