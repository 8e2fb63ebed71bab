"""Spike rasters: which of a few neurons of every layer fired in which time step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DirectSpiking, SpikingConfig
from ..kernels import spread_counts
from ..nets.direct import DirectDenoiser
from .network import SpikingNetwork

MOST_POTENTIAL = 1000.0  # thresholds: what a neuron at its highest level is driven beyond


@dataclass(frozen=True)
class Raster:
    """Unit events of some neurons of every layer, for one image at one diffusion time.

    spiking: how the network ran, a converted or a directly trained one.
    layers: names inside the U-Net, in the order in which they compute. neurons int64 [layers, K]: the chosen ones, as
    indices into a layer's flattened neurons. events int8 [layers, K, steps] in {−1, 0, 1}, settling steps included.
    window: steps with the input on, T. t: diffusion time. potentials float16 [layers, K, steps]: the membrane potential
    that each step leaves behind, in thresholds, at which a neuron fires (below 0 it takes a spike back); None where
    neurons integrate in another way, or it was not recorded. Under `layer_sync` the steps are those of each layer's own
    window, and the windows follow one another.
    """

    spiking: SpikingConfig | DirectSpiking
    layers: tuple[str, ...]
    neurons: Tensor
    events: Tensor
    window: int
    t: float
    potentials: Tensor | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the network was trained as it is, with neurons that send 0 or 1."""
        return isinstance(self.spiking, DirectSpiking)


@torch.no_grad()
def record_raster(
    snn: SpikingNetwork, x: Tensor, t: Tensor, neurons_per_layer: int = 24, seed: int = 0, y: Tensor | None = None
) -> Raster:
    """Run one image x [1, C, H, W] at t [1], as `snn` is set to run, and keep the events of some neurons of each layer.

    y: the image's class [1], of a network that is told it.
    Half of a layer's neurons are drawn among those that fire under `layer_sync`, so that a sparse layer is not all
    silence; the others among the rest. The choice follows from `seed`, the image and the weights alone: rasters of one
    network under several schedules show the same neurons. A layer with fewer neurons than asked for limits all.

    Raises ValueError for more than one image, or for fewer than one neuron per layer.
    """
    t = _checked(x, t, neurons_per_layer)
    call = (x, t) if y is None else (x, t, y)
    counts = _Events()
    with snn.running_as(SpikingConfig("layer_sync")), snn.monitored(counts):
        snn(*call)
    chosen = _choose({layer: rows[0][0] != 0 for layer, rows in counts.rows.items()}, neurons_per_layer, seed)

    trains, drives = _Events(chosen), _Drives(snn, chosen)
    with snn.monitored(trains), drives.watching():
        snn(*call)
    names: dict[nn.Module, str] = {neuron: name for name, neuron in snn.neurons()}
    window = snn.clock.spike_steps
    rows = {layer: torch.cat(trains.rows[layer]) for layer in chosen}
    driven = {layer: torch.cat(drives.rows[layer]) for layer in chosen} if drives.rows else {}
    if not snn.clock.is_stream:  # each layer fires evenly over a window of its own, as if driven by its own level
        shares = torch.arange(1, window + 1, dtype=torch.float64)[:, None] / window
        driven = {layer: 0.5 + shares * counts[0] for layer, counts in rows.items()}
        rows = {layer: spread_counts(counts[0], window) for layer, counts in rows.items()}
    events = torch.stack([rows[layer].T.to(torch.int8) for layer in chosen])
    layers, neurons = tuple(names[layer] for layer in chosen), torch.stack(list(chosen.values()))
    potentials = membrane_potentials(torch.stack([driven[m].T for m in chosen]), events) if driven else None
    return Raster(snn.spiking, layers, neurons, events, window, float(t), potentials)


def membrane_potentials(drives: Tensor, events: Tensor) -> Tensor:
    """What each step leaves of the input, initial potential included, in thresholds: float16 [layers, K, steps].

    drives [layers, K, steps]: c + r·(x − β)/Δ, what has arrived by step s, a share r = min(s / T, 1) of the window's
    input, in levels and above the initial potential c. The spikes so far have taken the level k away from it.
    """
    return (drives - events.cumsum(2, dtype=torch.float64)).clamp(-MOST_POTENTIAL, MOST_POTENTIAL).to(torch.float16)


@torch.no_grad()
def record_direct_raster(
    net: DirectDenoiser, x: Tensor, t: Tensor, neurons_per_layer: int = 24, seed: int = 0
) -> Raster:
    """The same of a directly trained network, in eval mode: half of a layer's neurons are drawn among those that fire.

    Raises ValueError as `record_raster` does.
    """
    t = _checked(x, t, neurons_per_layer)
    spikes = _Events()
    with net.monitored(spikes):
        net(x, t)
    trains = {layer: torch.cat(rows) for layer, rows in spikes.rows.items()}
    chosen = _choose({layer: (train != 0).any(0) for layer, train in trains.items()}, neurons_per_layer, seed)
    events = torch.stack([trains[layer][:, neurons].T.to(torch.int8) for layer, neurons in chosen.items()])
    names: dict[nn.Module, str] = {neuron: name for name, neuron in net.neurons()}
    layers, neurons = tuple(names[layer] for layer in chosen), torch.stack(list(chosen.values()))
    return Raster(net.spiking, layers, neurons, events, net.spike_steps, float(t))


def _checked(x: Tensor, t: Tensor, neurons_per_layer: int) -> Tensor:
    """t [1]. Raises ValueError."""
    if len(x) != 1 or t.numel() != 1:
        raise ValueError(f"a raster is of one image at one time, not of {len(x)} at {t.numel()}")
    if neurons_per_layer < 1:
        raise ValueError(f"{neurons_per_layer} neurons per layer: use at least 1")
    return t.reshape(1)


def _choose(fires: dict[nn.Module, Tensor], neurons_per_layer: int, seed: int) -> dict[nn.Module, Tensor]:
    """fires: layer → bool [neurons]. The same number of indices of each, that of the smallest layer at most."""
    count = min(neurons_per_layer, *(len(layer) for layer in fires.values()))
    generator = torch.Generator().manual_seed(seed)
    return {layer: _choose_in(layer_fires, count, generator) for layer, layer_fires in fires.items()}


def _choose_in(fires: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """fires, bool [neurons] → sorted indices [count], half of them, if there are as many, of neurons that fire."""
    order = torch.randperm(len(fires), generator=generator)
    firing = order[fires[order]][: (count + 1) // 2]
    silent = order[~torch.isin(order, firing)]
    return torch.cat([firing, silent[: count - len(firing)]]).sort().values


class _Drives:
    """Keeps what arrives at the chosen neurons of the first image: per layer, the chunks in order, float64 [L, K].

    Nothing of neurons that read the currents of a step, or are the published ones.
    """

    def __init__(self, snn: SpikingNetwork, chosen: dict[nn.Module, Tensor]) -> None:
        self.clock, self.chosen = snn.clock, chosen
        self.rows: dict[nn.Module, list[Tensor]] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        known_drives = self.clock.on_currents or self.clock.config.if_neuron == "reference"
        handles = [] if known_drives else [neuron.register_forward_pre_hook(self._keep) for neuron in self.chosen]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, neuron: Any, args: tuple[Tensor, ...]) -> None:
        neurons, x = neuron.neurons(args[0]), args[0]
        x = x if neurons.levels.before is None else neurons.levels.before(x)
        arrived = self.clock.unfold((x - neurons.levels.offset) * neurons.levels.per_unit)
        shares = [pace.share for pace in self.clock.paces()]
        arrived = arrived * arrived.new_tensor(shares).view(-1, *[1] * (arrived.dim() - 1))
        charged = arrived + (0.5 if neurons.charge is None else neurons.charge)
        rows = charged[:, 0].flatten(1)[:, self.chosen[neuron].to(x.device)]
        self.rows.setdefault(neuron, []).append(rows.to("cpu", torch.float64))


class _Events:
    """Monitor that keeps the first image's events: per layer, the chunks in order, each int16 [L, neurons].

    chosen: the only neurons to keep of each layer.
    """

    def __init__(self, chosen: dict[nn.Module, Tensor] | None = None) -> None:
        self.chosen = chosen
        self.rows: dict[nn.Module, list[Tensor]] = {}

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        rows = events[:, 0].flatten(1)
        if self.chosen is not None:
            rows = rows[:, self.chosen[neuron].to(rows.device)]
        self.rows.setdefault(neuron, []).append(rows.to("cpu", torch.int16))
