"""How far a spiking network is from the quantized network it was made of, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import SpikingConfig, require
from ..distributed.precision import in_tf32
from ..distributed.runtime import evaluating
from ..ptq.calls import leaves
from .network import SpikingNetwork

PREDICTION = "prediction"  # the row of the network's output
MOST_TIMES = 32  # that an error is told for one by one


@dataclass(frozen=True)
class BlockGap:
    """error: ‖mean over time of the SNN's output − the ANN's‖ / ‖the ANN's‖, over the whole batch.

    firing_rate: spikes of either sign per neuron and window step (T steps; settling adds spikes, not steps).
    negative_share: share of the spikes that are negative. Both are nan for a block without neurons.
    errors_at: the error at each of `GapReport.times` alone; nan where it cannot be told apart by image.
    """

    block: str
    error: float
    firing_rate: float
    negative_share: float
    errors_at: tuple[float, ...] = ()


@dataclass(frozen=True)
class GapReport:
    """Gap of every block in data-flow order, and of the network's output (block "prediction").

    times: the diffusion times that it was measured at, where they are known (`measure_gap`).
    """

    spiking: SpikingConfig
    blocks: tuple[BlockGap, ...]
    prediction: BlockGap
    spikes_per_image: float
    settle_steps: int
    name: str = ""
    times: tuple[float, ...] = ()

    def rows(self) -> list[BlockGap]:
        return [*self.blocks, self.prediction]

    @property
    def label(self) -> str:
        """Short name of the run mode for tables, such as "stream +2"."""
        return f"{self.name} {self.spiking.label}".strip()

    def to_dict(self) -> dict:
        """Plain values for JSON; nan becomes None."""
        rows = [{k: _plain(v) for k, v in dataclasses.asdict(row).items() if v != ()} for row in self.rows()]
        return {
            "label": self.label,
            "spiking": self.spiking.to_dict(),
            "spikes_per_image": self.spikes_per_image,
            "settle_steps": self.settle_steps,
            **({"times": list(self.times)} if self.times else {}),
            "blocks": rows,
        }


def _plain(value: object) -> object:
    """For JSON, which has no nan."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if value != value else value


class SpikeTotals:
    """Monitor that counts events per neuron layer."""

    def __init__(self) -> None:
        self.positive: dict[nn.Module, float] = {}
        self.negative: dict[nn.Module, float] = {}
        self.neurons: dict[nn.Module, int] = {}  # per image

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        self.positive[neuron] = self.positive.get(neuron, 0.0) + float(events.clamp(min=0).sum(dtype=torch.float64))
        self.negative[neuron] = self.negative.get(neuron, 0.0) - float(events.clamp(max=0).sum(dtype=torch.float64))
        self.neurons[neuron] = math.prod(events.shape[2:])

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
    """Accumulates the gap of `snn` to `ann` over calls, each network on its own inputs, block by block.

    `spiking` overrides how the SNN runs. Both networks run in eval mode and should be of one dtype; use float64 to
    judge equality, since a low-bit network turns float32's last digits into visible differences.
    """

    def __init__(self, ann: nn.Module, snn: SpikingNetwork, spiking: SpikingConfig | None = None) -> None:
        require(isinstance(ann, nn.Module), f"ann is a {type(ann).__name__}: give the network that was converted")
        require(isinstance(snn, SpikingNetwork), f"snn is a {type(snn).__name__}, which has no gap: convert it first")
        self.ann, self.snn, self.spiking = ann, snn, spiking or snn.spiking
        self.totals = SpikeTotals()
        self.squares: dict[str, tuple[float, float]] = {}  # block → Σ difference², Σ expected²
        self.by_image: dict[str, list[Tensor]] = {}  # block → the same of each image, [2, N] for each call
        self.images = 0
        self.settle_steps = 0

    @torch.no_grad()
    def update(self, *args: object, **kwargs: object) -> None:
        """One call of both networks, x [N, C, H, W], t [N] for a denoiser."""
        snn = self.snn
        with in_tf32(False), evaluating(self.ann, snn):
            with record_outputs(self.ann) as expected:
                target = self.ann(*args, **kwargs)
            with snn.running_as(self.spiking), snn.monitored(self.totals), record_outputs(snn) as actual:
                prediction = snn(*args, **kwargs)
        images = len(next(value for value in leaves((args, kwargs)) if _is_batch(value)))
        for name, values in expected.items():
            self._add(name, list(zip(actual[name], values, strict=True)), images)
        self._add(PREDICTION, list(zip(_values(prediction), _values(target), strict=True)), images)
        self.images += images
        self.settle_steps = max(self.settle_steps, snn.last_settle_steps)

    def _add(self, name: str, pairs: list[tuple[Tensor, Tensor]], images: int) -> None:
        """pairs: what both networks answered, (actual, expected), in each call of a block during one pass."""
        squares, totals = torch.zeros(2, images, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for actual, expected in pairs:
            parts = torch.stack([(actual.double() - expected.double()).square(), expected.double().square()]).cpu()
            totals += parts.flatten(1).sum(1)
            fits = parts.dim() > 1 and parts.shape[1] == images
            squares = squares + (parts.reshape(2, images, -1).sum(2) if fits else math.nan)
        difference, scale = self.squares.get(name, (0.0, 0.0))
        self.squares[name] = difference + float(totals[0]), scale + float(totals[1])
        self.by_image.setdefault(name, []).append(squares)

    def report(self, t: Tensor | None = None) -> GapReport:
        """The gap so far; with t [images], the diffusion times of all of them, also of each time alone if they are few.

        Raises ValueError before the first update.
        """
        if not self.images:
            raise ValueError("no batch has been measured yet")
        of_images = [] if t is None or t.dim() != 1 else t.tolist()
        times: tuple[float, ...] = tuple(dict.fromkeys(of_images))
        times = times if len(times) <= MOST_TIMES else ()
        chosen = [[image for image, image_time in enumerate(of_images) if image_time == time] for time in times]
        steps = self.images * self.snn.clock.spike_steps

        def row(name: str, rates: tuple[float, float]) -> BlockGap:
            squares = torch.cat(self.by_image[name], dim=1)
            by_time = (_relative(*squares[:, rows].sum(1).tolist()) for rows in chosen)
            return BlockGap(name, _relative(*self.squares[name]), *rates, tuple(by_time))

        blocks = [
            row(name, self.totals.rates(module.modules(), steps))
            for name, module in blocks_of(self.snn.net)
            if name in self.squares
        ]
        prediction = row(PREDICTION, self.totals.rates(self.totals.neurons, steps))
        spikes = self.totals.total() / self.images
        return GapReport(self.spiking, tuple(blocks), prediction, spikes, self.settle_steps, times=times)


def _relative(difference: float, scale: float) -> float:
    """Both are sums of squares."""
    return math.sqrt(difference / scale) if scale > 0 else math.sqrt(difference)


def measure_gap(
    ann: nn.Module,
    snn: SpikingNetwork,
    x: Tensor,
    t: Tensor,
    spiking: SpikingConfig | None = None,
    batch_size: int = 16,
    y: Tensor | None = None,
) -> GapReport:
    """The gap of a denoiser on x [N, C, H, W], t [N], and classes y [N] where it is told them, in batches.

    See `GapMeter`.
    """
    meter = GapMeter(ann, snn, spiking)
    for batch in zip(*(values.split(batch_size) for values in (x, t, y) if values is not None), strict=True):
        meter.update(*batch)
    return meter.report(t)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖₂ / ‖expected‖₂ in float64; 0 when both are zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).norm()
    scale = expected.norm()
    return float(difference / scale) if scale > 0 else float(difference)


def blocks_of(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the parts that a network is looked at in: its own `blocks()`, or its children.

    Lists and sequences of modules are looked into.
    """
    own_blocks = getattr(net, "blocks", None)
    if inspect.ismethod(own_blocks):  # and no list of modules that has the name
        yield from own_blocks()
        return
    for name, child in net.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential) and len(child):
            yield from ((f"{name}.{inner}", module) for inner, module in blocks_of(child))
        else:
            yield name, child


@contextlib.contextmanager
def record_outputs(net: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what every block answers in each of its calls in a pass, averaged over time, while the context is open.

    Of a block with several answers the first is taken; one that answers with no tensor is left out.
    """
    clock = net.clock if isinstance(net, SpikingNetwork) else None
    outputs: dict[str, list[Tensor]] = {}
    before: dict[str, list[Tensor]] = {}  # the averages of the earlier chunks
    chunk = -1

    def hook_for(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            nonlocal chunk
            if clock is not None and clock.chunk != chunk:
                chunk = clock.chunk
                before.update({key: list(values) for key, values in outputs.items()})
                outputs.clear()
            for value in _values(output)[:1]:
                values = outputs.setdefault(name, [])
                if clock is not None:
                    earlier = before.get(name, [])[len(values) : len(values) + 1]
                    value = clock.average(value, *earlier)
                values.append(value.clone())  # what comes next may write into it

        return hook

    inside = net.net if isinstance(net, SpikingNetwork) else net
    handles = [module.register_forward_hook(hook_for(name)) for name, module in blocks_of(inside)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _values(output: object) -> list[Tensor]:
    """The tensors of real numbers in an answer."""
    return [value for value in leaves(output) if isinstance(value, Tensor) and value.is_floating_point()]


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
