"""A converted network at one diffusion time as a NIR file (Pedersen et al., "Neuromorphic intermediate representation",
Nature Communications 15:8122, 2024), which simulators and devices read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import check_number, require
from ..convert import SpikingNetwork
from ..files.atomic import replacing
from ..ptq.calls import copied
from .follow import GridError, Writer
from .graph import Graph, nir_package


class GraphFile(NamedTuple):
    """A file that gets the network at diffusion time `time` as a graph. fold_norms: see `export_nir`."""

    path: Path
    time: float
    fold_norms: bool = False


def export_nir(
    snn: SpikingNetwork,
    t: float | None,
    path: str | os.PathLike,
    *,
    x: Tensor | None = None,
    fold_norms: bool = False,
) -> None:
    """Write the converted network at diffusion time t as a NIR graph, in double precision, to a new HDF5 file.

    t: None for a network that is called with its input alone. x: an example of the input, [1, C, H, W] or [1, F], where
    the network does not know one (`SpikingNetwork.describe`). fold_norms: multiply a batch norm into the weights of the
    convolutions and linear layers whose sum it reads, where nothing else reads that; sums are then rounded elsewhere,
    so that one within rounding of a threshold may fall on its other side.

    The graph runs step by step (`stream`). It is fed x/T in each of the first T steps and zeros after, and answers
    what the network has answered so far times the share of the window, Σ of steps; neurons that take spikes back may
    run on until they are silent, and it then answers what the quantized network does. docs/hardware.md derives its
    nodes, and the form that up-sampling gives them.

    Raises UserError, naming the layer, for what NIR cannot express exactly; where the packages are missing; where there
    is something at `path`.
    """
    write_graph(planned(snn, t, path, x, fold_norms), path)


def planned(
    snn: SpikingNetwork, t: float | None, path: str | os.PathLike, x: Tensor | None = None, fold_norms: bool = False
) -> Any:
    """The `nir.NIRGraph` that `export_nir` writes to `path`. Raises UserError as that does."""
    require(isinstance(snn, SpikingNetwork), f"a {type(snn).__name__} is not converted: use ann2snn.convert first")
    nir_package()
    _check_free(path)
    return graph_of(snn, t, x, fold_norms)


def _check_free(path: str | os.PathLike) -> None:
    require(not os.path.lexists(path), f"{path} exists: nothing is overwritten; choose another name")


def write_graph(graph: Any, path: str | os.PathLike) -> None:
    """Raises UserError where there is something at `path`, and where it cannot be written."""
    nir = nir_package()
    _check_free(path)
    with replacing(path) as temporary, open(temporary, "w+b") as file:  # by its name HDF5 would want to lock it
        nir.write(file, graph)


def check_exported(snn: SpikingNetwork) -> None:
    """Raise UserError for settings under which neurons do what the nodes do not."""
    spiking = snn.spiking
    require(
        not getattr(snn, "num_classes", 0),
        "a class-conditional network has no NIR graph: train one without --class_cond",
    )
    require(spiking.burst == 1, f"--burst={spiking.burst}: NIR's thresholds send one spike a step: use --burst=1")
    published = spiking.stream_norm != "cumulative" or spiking.if_neuron != "bounded"
    require(not published, "the published dynamics have no NIR graph: use stream_norm=cumulative and if_neuron=bounded")
    require(
        spiking.signed or not spiking.settle_steps,
        "neurons that take nothing back are exact for the window alone: use settle_steps=0, or signed=True (--signed)",
    )
    snn.check_mode()


@torch.no_grad()
def graph_of(snn: SpikingNetwork, t: float | None, x: Tensor | None = None, fold_norms: bool = False) -> Any:
    """The network as a `nir.NIRGraph`. Raises UserError."""
    check_exported(snn)
    example = x if x is not None else _example(snn)
    snn = copied(snn).double().cpu()
    x = example.detach().double().cpu().clone()
    require(
        x.dim() in (2, 4) and len(x) == 1 and x.numel() > 0,
        f"an input of shape {list(x.shape)}: give one image or vector",
    )
    call = (x,) if t is None else (x, _time(snn, t))
    snn.describe(*(value.clone() for value in call))  # which neurons move, and so how long the window is
    coarsest = 0
    while True:
        try:
            graph, factor = _written(snn, call, coarsest)
            if fold_norms:
                graph.fold_norms()
            return graph.finished(_about(snn, t, factor))
        except GridError as error:
            coarsest = error.side


def _example(snn: SpikingNetwork) -> Tensor:
    args, _ = snn.example()
    require(bool(args) and isinstance(args[0], Tensor), "give an example of the network's input: x=…")
    return args[0][:1]


def _time(snn: SpikingNetwork, t: float) -> Tensor:
    value = check_number(t, "t")
    steps = getattr(getattr(snn, "diffusion", None), "diffusion_steps", math.inf)
    require(0 <= value < steps, f"t={t} (--nir_time): use a diffusion time from 0 to below {steps}")
    return torch.tensor([value], dtype=torch.float64)


def _written(snn: SpikingNetwork, call: tuple[Tensor, ...], coarsest: int) -> tuple[Graph, int]:
    """The pass, written down; and how many pixels of a line are channels in its answer."""
    x, *others = (value.clone() for value in call)
    shape = tuple(x.shape[1:]) if x.dim() == 4 else (x.shape[1], 1, 1)
    writer = Writer(snn.net, Graph(shape, snn.clock.spike_steps), coarsest)
    snn.reset()
    with snn.running_as(snn.spiking.changed(schedule="layer_sync")), snn.monitored(None):
        snn.clock.begin(1)
        with writer.attached(x):
            answered = snn.net(x, *others)
    snn.reset()
    signal, graph = writer.answer(answered), writer.graph
    values = writer.values(signal.constant, signal)
    total = graph.integrate("answer", values.shape, signal.node, *graph.constant("answer", values))
    graph.add("output", graph.nir.Output(output_type={"output": np.array(values.shape)}), total)
    return graph, signal.factor


def _about(snn: SpikingNetwork, t: float | None, factor: int) -> dict[str, object]:
    """What a reader of the file must know."""
    return {
        "written_by": "ann2snn",
        "time_steps": snn.clock.spike_steps,
        "runs_on_until_silent": int(snn.spiking.signed),
        "output_pixel_shuffle": factor,  # of the answer: 1 is an image as it is
        **({} if t is None else {"diffusion_time": float(t)}),
    }
