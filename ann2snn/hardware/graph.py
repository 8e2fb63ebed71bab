"""A graph of NIR's primitives, node by node, and the neuron of a converted network as one.

All values are *currents*: what arrives in a time step. A layer's input so far is their sum. Edges that meet in a node
add up; what comes back (feedback) arrives one step later. Names sort in the order in which nodes may be computed, which
is the order that HDF5 keeps and in which `nirtorch` runs them.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..config import require
from ..errors import UserError
from ..kernels import Neurons
from .layout import Convolution

MISSING = "a NIR file needs the packages nir and h5py: pip install nir"


def nir_package() -> ModuleType:
    """Raises UserError where it is not installed."""
    try:
        return importlib.import_module("nir")
    except ModuleNotFoundError:
        raise UserError(MISSING) from None


class Graph:
    """Nodes and edges so far.

    shape: of the input [C, H, W]. spike_steps: T.
    """

    def __init__(self, shape: tuple[int, ...], spike_steps: int) -> None:
        self.nir, self.shape = nir_package(), shape
        self.spike_steps = spike_steps
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.windows: dict[int, str] = {}
        self.norms: list[str] = []
        self.input = self.add("input", self.nir.Input(input_type={"input": np.array(shape)}))

    def add(self, name: str, node: object, *sources: str) -> str:
        """The name of the new node. Raises ValueError for a source twice."""
        require(len(set(sources)) == len(sources), f"{name} reads a node twice")
        name = f"{len(self.nodes):05d}.{name}"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def scale(self, name: str, by: np.ndarray, *sources: str) -> str:
        return self.add(name, self.nir.Scale(by), *sources)

    def norm(self, name: str, by: np.ndarray, source: str) -> str:
        """A scale that `fold_norms` may take away."""
        self.norms.append(self.scale(name, by, source))
        return self.norms[-1]

    def fold_norms(self) -> None:
        """Multiply norms into the weights of convolutions whose sum they read, where nothing else reads that."""
        for norm in self.norms:
            (source,) = self._sources(norm)
            by = self._by_channel(norm)
            if by is not None and self._folds(source):
                self._multiply(source, by)
                self._bypass(norm)

    def _sources(self, name: str) -> list[str]:
        return [start for start, end in self.edges if end == name]

    def _by_channel(self, name: str) -> np.ndarray | None:
        """With what a scale multiplies each channel, [C, 1, 1]; None where that is not the same in all places."""
        by = np.asarray(self.nodes[name].scale)
        return by[:, :1, :1] if (by == by[:, :1, :1]).all() else None

    def _folds(self, name: str) -> bool:
        """Whether a factor of each channel behind a node can go into weights before it."""
        node = self.nodes[name]
        if sum(start == name for start, _ in self.edges) != 1:
            return False
        if isinstance(node, self.nir.Scale):
            return self._by_channel(name) is not None and all(map(self._folds, self._sources(name)))
        return isinstance(node, self.nir.Conv2d) and not node.bias.any()

    def _multiply(self, name: str, by: np.ndarray) -> None:
        node = self.nodes[name]
        if isinstance(node, self.nir.Conv2d):
            node.weight = node.weight * by[..., None]
            return
        for source in self._sources(name):
            self._multiply(source, by * self._by_channel(name))
        self._bypass(name)

    def _bypass(self, name: str) -> None:
        """Take a node away; what read it reads what it read."""
        sources, readers = self._sources(name), [end for start, end in self.edges if start == name]
        self.edges = [edge for edge in self.edges if name not in edge]
        self.edges += [(source, reader) for source in sources for reader in readers]
        del self.nodes[name]

    def threshold(self, name: str, at: np.ndarray, *sources: str) -> str:
        """1 where the sum of its sources is above `at`, else 0."""
        return self.add(name, self.nir.Threshold(at), *sources)

    def integrate(self, name: str, shape: tuple[int, ...], *sources: str, r: float = 1.0) -> str:
        return self.add(name, self.nir.I(np.full(shape, r)), *sources)

    def convolve(self, name: str, shape: tuple[int, ...], conv: Convolution, source: str, bias: float = 0.0) -> str:
        """shape: of the input [C, H, W]."""
        weight = conv.weight.detach().double().numpy()
        about = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": 1}
        node = self.nir.Conv2d(tuple(shape[1:]), weight, bias=np.full(len(weight), bias), **about)
        return self.add(name, node, source)

    def window(self, side: int) -> str:
        """1 in each of the first T steps, then 0, [1, side, side]: what constants are multiplied with."""
        if side not in self.windows:
            channels, height, _ = self.shape
            none = torch.zeros(1, channels, height - side + 1, height - side + 1)
            shape, at = (1, side, side), f"window{side}"
            tick = self.convolve(f"{at}.tick", self.shape, Convolution(none), self.input, bias=1.0)
            elapsed = self.integrate(f"{at}.left", shape, tick, r=-1.0)
            self.windows[side] = self.threshold(at, np.full(shape, -self.spike_steps - 0.5), elapsed)
        return self.windows[side]

    def constant(self, name: str, values: np.ndarray, always: bool = False) -> list[str]:
        """The node that adds up to `values` [C, H, W] over the window; none for zeros, but `always`."""
        if not (always or values.any()):
            return []
        for height, width in (self.shape[1:], values.shape[1:]):
            require(height == width, f"images of {height}x{width} pixels: constants reach squares alone in NIR")
        share, window = values / self.spike_steps, self.window(values.shape[1])
        shape = (1, *values.shape[1:])
        first = share[:, :1, :1]
        if (share == first).all():
            return [self.convolve(f"{name}.bias", shape, Convolution(torch.from_numpy(first)[..., None]), window)]
        spread = Convolution(torch.ones(len(values), 1, 1, 1))
        return [self.scale(f"{name}.bias", share, self.convolve(f"{name}.bias.spread", shape, spread, window))]

    def neuron(self, name: str, neurons: Neurons, values: dict[str, np.ndarray], sources: list[str]) -> str:
        """The neuron of `kernels.follow` on currents; answers what it sends, events times their worth.

        values: step Δ, charge c and worth of every neuron, [C, H, W].

        With v = Σ currents − Δ·k, k the level before this step, floor(Σ/Δ + c) ≥ k + 1 is v ≥ (1 − c)·Δ, and
        floor(Σ/Δ + c) < k is v < −c·Δ. NIR's threshold fires above its value, so the former is one just below. One that
        takes nothing back cannot pass its bounds within a window of as many steps as it has levels.
        """
        step, charge, worth = (values[key] for key in ("step", "charge", "worth"))
        membrane = self.integrate(f"{name}.membrane", step.shape, *sources)
        rising = np.nextafter((1 - charge) * step, -np.inf)
        if neurons.takes_back:
            moves = self._bounded(name, neurons, membrane, rising, charge * step)
        else:
            moves = [self.threshold(f"{name}.up", rising, membrane)]
        sent = self.scale(f"{name}.sent", worth, *moves)
        self.edges.append((self.scale(f"{name}.feedback", -step, *moves), membrane))
        return sent

    def _bounded(
        self, name: str, neurons: Neurons, membrane: str, rising: np.ndarray, falling: np.ndarray
    ) -> list[str]:
        """The nodes whose sum is the event of a neuron that a counter keeps within its bounds.

        A threshold at 3/2 is the logical and of two of them.
        """
        levels = neurons.levels
        everywhere = functools.partial(np.full, rising.shape)
        level = self.integrate(f"{name}.level", rising.shape)
        minus_level = self.scale(f"{name}.minus_level", everywhere(-1.0), level)
        minus_membrane = self.scale(f"{name}.minus_membrane", everywhere(-1.0), membrane)
        over = self.threshold(f"{name}.over", rising, membrane)
        under = self.threshold(f"{name}.under", falling, minus_membrane)
        below_top = self.threshold(f"{name}.below_top", everywhere(0.5 - levels.hi), minus_level)
        above_bottom = self.threshold(f"{name}.above_bottom", everywhere(levels.lo + 0.5), level)
        up = self.threshold(f"{name}.up", everywhere(1.5), over, below_top)
        down = self.threshold(f"{name}.down", everywhere(1.5), under, above_bottom)
        moves = [up, self.scale(f"{name}.minus_down", everywhere(-1.0), down)]
        self.edges += [(move, level) for move in moves]
        return moves

    def finished(self, metadata: dict[str, object]) -> object:
        """The `nir.NIRGraph`. Its types are checked, not inferred: all are known, and that takes seconds."""
        graph = self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata, type_check=False)
        graph.check_types()
        return graph
