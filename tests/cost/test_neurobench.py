"""The counts agree with NeuroBench's own metrics, layer by layer, where that package is installed."""

import pytest
import torch
from torch import nn

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, fold_thresholds
from ann2snn.cost import count_operations
from ann2snn.cost.layers import SYNAPTIC
from ann2snn.nets.sddpm import SDDPM, SDDPMConfig
from ann2snn.neurons import IFNeuron, LIFNeuron
from quant import QuantReLU
from tests.fill import deterministic_fill
from tests.helpers import random_ann, random_batch

workload = pytest.importorskip("neurobench.metrics.workload")
models = pytest.importorskip("neurobench.models")


def neurobench(net: nn.Module, call: nn.Module, x: torch.Tensor, t: torch.Tensor, activation: type) -> tuple:
    """({Effective_MACs, Effective_ACs, Dense} per image, activation sparsity) of `net`, run by calling `call`."""
    model = models.TorchModel(net)
    model.add_activation_module(activation)
    model.register_hooks()
    try:
        with torch.no_grad():
            call(x, t)
            operations = workload.SynapticOperations()(model, None, (x, None))
        return operations, workload.ActivationSparsity()(model, None, (x, None))
    finally:
        model.cleanup_hooks()


def synaptic(report, field: str) -> float:
    return sum(getattr(layer, field) for layer in report.layers if layer.kind in SYNAPTIC)


def test_spiking_network_on_currents():
    """Where layers read the events of a step, as published; means, which other schedules run on, are no events.

    NeuroBench counts what sees a constant image in every step, and wants unit events, so thresholds are folded.
    """
    ann = random_ann()
    x, t = random_batch(ann)
    snn = fold_thresholds(convert(ann, SpikingConfig("stream", stream_norm="per_step")))
    report = count_operations(snn, x, t)
    operations, sparsity = neurobench(snn.net, snn, x, t, IFNeuron)
    layers = {layer.name: layer for layer in report.layers}
    repeated = sum(layers[name].mac for name in ("head", "time_embedding.timembedding.1"))
    assert operations["Effective_ACs"] == synaptic(report, "ac") > 0
    assert operations["Effective_MACs"] == synaptic(report, "mac") + 2 * repeated
    assert operations["Dense"] == 3 * synaptic(report, "synapses")
    assert 1 - sparsity == pytest.approx(report.firing_rate, rel=1e-12)


def test_quantized_ann():
    ann = random_ann()
    x, t = random_batch(ann)
    report = count_operations(ann, x, t)
    operations, _ = neurobench(ann, ann, x, t, QuantReLU)
    assert operations["Effective_MACs"] == synaptic(report, "mac") > 0 == operations["Effective_ACs"]
    assert operations["Dense"] == synaptic(report, "dense")


def test_directly_trained_network():
    """No layer of SDDPM reads spikes in some channels and real values in others, which NeuroBench would not split."""
    net = SDDPM(SDDPMConfig(in_channels=1, image_size=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, spike_steps=3))
    deterministic_fill(net)
    net.double().eval()
    x, t = random_batch(net)
    report = count_operations(net, x, t)
    operations, sparsity = neurobench(net, net, x, t, LIFNeuron)
    assert operations["Effective_ACs"] == synaptic(report, "ac") > 0
    assert operations["Effective_MACs"] == synaptic(report, "mac")
    assert operations["Dense"] == synaptic(report, "dense")
    assert 1 - sparsity == pytest.approx(report.firing_rate, rel=1e-12)
