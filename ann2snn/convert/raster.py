"""Spike rasters: which of a few neurons of every layer fired in which time step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import DirectSpiking, SpikingConfig
from ..kernels import spread_counts
from ..nets.direct import DirectDenoiser
from .network import SpikingNetwork


@dataclass(frozen=True)
class Raster:
    """Unit events of some neurons of every layer, for one image at one diffusion time.

    spiking: how the network ran, a converted or a directly trained one.
    layers: names inside the U-Net, in the order in which they compute. neurons int64 [layers, K]: the chosen ones, as
    indices into a layer's flattened neurons. events int8 [layers, K, steps] in {−1, 0, 1}, settling steps included.
    window: steps with the input on, T. t: diffusion time. Under `layer_sync` the steps are those of each layer's own
    window, and the windows follow one another.
    """

    spiking: SpikingConfig | DirectSpiking
    layers: tuple[str, ...]
    neurons: Tensor
    events: Tensor
    window: int
    t: float

    @property
    def is_direct(self) -> bool:
        """Whether the network was trained as it is, with neurons that send 0 or 1."""
        return isinstance(self.spiking, DirectSpiking)


@torch.no_grad()
def record_raster(snn: SpikingNetwork, x: Tensor, t: Tensor, neurons_per_layer: int = 24, seed: int = 0) -> Raster:
    """Run one image x [1, C, H, W] at t [1] as `snn` is set to run, and keep the events of some neurons of each layer.

    Half of a layer's neurons are drawn among those that fire under `layer_sync`, so that a sparse layer is not all
    silence; the others among the rest. The choice follows from `seed`, the image and the weights alone: rasters of one
    network under several schedules show the same neurons. A layer with fewer neurons than asked for limits all.

    Raises ValueError for more than one image, or for fewer than one neuron per layer.
    """
    t = _checked(x, t, neurons_per_layer)
    counts = _Events()
    with snn.running_as(SpikingConfig("layer_sync")), snn.monitored(counts):
        snn(x, t)
    chosen = _choose({layer: rows[0][0] != 0 for layer, rows in counts.rows.items()}, neurons_per_layer, seed)

    trains = _Events(chosen)
    with snn.monitored(trains):
        snn(x, t)
    names: dict[nn.Module, str] = {neuron: name for name, neuron in snn.neurons()}
    rows = {layer: torch.cat(trains.rows[layer]) for layer in chosen}
    if not snn.clock.is_stream:  # each layer fires evenly over a window of its own
        rows = {layer: spread_counts(counts[0], snn.clock.spike_steps) for layer, counts in rows.items()}
    events = [rows[layer].T.to(torch.int8) for layer in chosen]
    layers = tuple(names[layer] for layer in chosen)
    neurons = torch.stack(list(chosen.values()))
    return Raster(snn.spiking, layers, neurons, torch.stack(events), snn.clock.spike_steps, float(t))


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
    wanted = min(neurons_per_layer, *(len(layer) for layer in fires.values()))
    generator = torch.Generator().manual_seed(seed)
    return {layer: _choose_in(some, wanted, generator) for layer, some in fires.items()}


def _choose_in(fires: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """fires, bool [neurons] → sorted indices [wanted], half of them, if there are as many, of neurons that fire."""
    order = torch.randperm(len(fires), generator=generator)
    firing = order[fires[order]][: (wanted + 1) // 2]
    rest = order[~torch.isin(order, firing)]
    return torch.cat([firing, rest[: wanted - len(firing)]]).sort().values


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
