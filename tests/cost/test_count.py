"""Counted operations: against explicit loops, other counters of the program, and identities between ways of running."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, fold_thresholds, freeze_norms, measure_gap
from ann2snn.convert.gap import SpikeTotals
from ann2snn.cost import count_operations
from ann2snn.cost.converted import NORM_MACS
from ann2snn.cost.layers import SYNAPTIC
from ann2snn.cost.synapses import effective_operations, fan_out
from tests.helpers import random_ann, random_batch, spike_trains

LAYER_SYNC, STREAM = SpikingConfig(), SpikingConfig("stream")
AUTO = replace(STREAM, settle_steps="auto")
#: Fed by real values, whatever the schedule.
REAL = {
    *("head", "time_embedding.timembedding.1", "downblocks.1.main", "upblocks.2.main", "downblocks.2.shortcut"),
    *(f"upblocks.{i}.shortcut" for i in (0, 1, 3, 4)),
}


@pytest.fixture(scope="module")
def ann():
    return random_ann()


@pytest.fixture(scope="module")
def batch(ann):
    return random_batch(ann, 3)


@pytest.fixture(scope="module")
def reports(ann, batch):
    snn = convert(ann)
    return {mode: count_operations(snn, *batch, mode) for mode in (LAYER_SYNC, STREAM, AUTO)}


def by_name(report):
    return {layer.name: layer for layer in report.layers}


def sparse(shape, generator):
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values * (torch.rand(shape, generator=generator) < 0.4)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 4), (3, 2, 4), (3, 2, 5), (1, 1, 3), (3, 1, 1)])
def test_operations_of_a_convolution_by_loops(kernel, stride, size):
    generator = torch.Generator().manual_seed(kernel + 10 * stride)
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=kernel // 2).double()
    conv.weight.data = sparse(conv.weight.shape, generator)
    x = sparse((2, 2, size, size), generator)
    out = conv(x).shape[-1]
    effective = dense = 0
    for n, o, i, c, a, b, d in itertools.product(
        range(2), range(out), range(out), range(3), range(kernel), range(kernel), range(2)
    ):
        row, column = o * stride + a - kernel // 2, i * stride + b - kernel // 2
        if 0 <= row < size and 0 <= column < size:  # padding is no input
            dense += 1
            effective += bool(x[n, d, row, column] != 0 and conv.weight[c, d, a, b] != 0)
    reach, total = fan_out(conv, x.shape[1:])
    assert (effective_operations(x != 0, reach), 2 * total) == (effective, dense)


def test_operations_of_a_linear_layer_by_loops():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(5, 4).double()
    linear.weight.data = sparse((4, 5), generator)
    x = sparse((3, 5), generator)
    effective = sum(
        bool(x[n, i] != 0 and linear.weight[o, i] != 0) for n in range(3) for o in range(4) for i in range(5)
    )
    reach, total = fan_out(linear, x.shape[1:])
    assert (effective_operations(x != 0, reach), total) == (effective, 20)


@pytest.mark.parametrize("mode", [LAYER_SYNC, STREAM, AUTO], ids=lambda m: f"{m.schedule}+{m.settle_steps}")
def test_only_layers_behind_neurons_accumulate(reports, mode):
    layers = [layer for layer in reports[mode].layers if layer.kind in SYNAPTIC]
    assert {layer.name for layer in layers if layer.inputs == "real"} == REAL
    assert all(layer.inputs == "spikes" and layer.mac == 0 < layer.ac for layer in layers if layer.name not in REAL)
    assert all(layer.ac == 0 < layer.mac for layer in layers if layer.name in REAL)
    norms = [layer for layer in reports[mode].layers if layer.kind == "norm"]
    assert norms and all(layer.mac > 0 == layer.ac for layer in norms)


def test_spike_driven_network_multiplies_in_its_first_layers_alone():
    """Spikes stay spikes through upsampling, which copies them."""
    net = random_ann(spike_driven=True)
    for mode in (LAYER_SYNC, STREAM):
        report = count_operations(convert(net), *random_batch(net), mode)
        real = {layer.name for layer in report.layers if layer.inputs == "real"}
        assert real == {"head", "time_embedding.timembedding.1"}


@pytest.mark.parametrize("mode", [LAYER_SYNC, AUTO], ids=["layer_sync", "stream"])
def test_thresholds_per_channel_and_unit_events_are_spikes_too(ann, batch, mode):
    snn = convert(ann, mode)
    generator = torch.Generator().manual_seed(1)
    for name, neuron in snn.neurons():
        channels = next(m for n, m in snn.net.named_modules() if n == _follower(name)).weight.shape[1]
        shape = (channels,) if "temb" in name or "time" in name else (channels, 1, 1)
        neuron.act_alpha.data = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    plain, folded = (count_operations(net, *batch) for net in (snn, fold_thresholds(snn)))
    for report in (plain, folded):
        assert {layer.name for layer in report.layers if layer.inputs == "real"} == REAL
    assert plain.total("ac") == folded.total("ac") > 0 and plain.total("spikes") == folded.total("spikes")


def _follower(neuron: str) -> str:
    """The layer behind a neuron layer; a dropout stands between in block2."""
    stem, index = neuron.rsplit(".", 1)
    return f"{stem}.{int(index) + (2 if stem.endswith('block2') else 1)}"


def test_real_values_that_look_like_spikes_are_real(ann):
    """A black-and-white image, and time features of 0 and 1 at t = 0: no neuron sent them."""
    snn = fold_thresholds(convert(ann, STREAM))
    x = torch.where(torch.arange(16).view(4, 4) % 3 > 0, 1.0, -1.0).double().expand(1, 3, 4, 4)
    layers = by_name(count_operations(snn, x, torch.zeros(1, dtype=torch.int64)))
    assert layers["head"].inputs == layers["time_embedding.timembedding.1"].inputs == "real"


def test_a_neuron_that_sends_other_than_unit_events_feeds_multiplications(ann, batch):
    snn = convert(ann, STREAM)
    snn.net.tail[1].register_forward_hook(lambda m, args, out: out * torch.linspace(1, 2, 4, dtype=out.dtype))
    assert by_name(count_operations(snn, *batch))["tail.2"].inputs == "real"


def test_a_burst_of_n_spikes_is_n_accumulates(ann, batch):
    snn = convert(ann, replace(STREAM, burst=3))
    trains = spike_trains(snn, *batch)[1]
    assert max(float(events.abs().max()) for events in trains.values()) > 1
    report = count_operations(snn, *batch)
    assert {layer.name for layer in report.layers if layer.inputs == "real"} == REAL
    fired = sum(float(e.abs().sum()) for e in trains.values()) / len(batch[0])
    assert report.total("spikes") == pytest.approx(fired)
    spikes = trains["tail.1"].abs().flatten(0, 1)  # [L·N, C, H, W]
    ones = torch.ones_like(snn.net.tail[2].weight)
    accumulates = torch.nn.functional.conv2d(spikes, ones, padding=1).sum() / len(batch[0])
    assert by_name(report)["tail.2"].ac == pytest.approx(float(accumulates))


@pytest.mark.parametrize("mode", [LAYER_SYNC, STREAM, AUTO], ids=lambda m: f"{m.schedule}+{m.settle_steps}")
def test_spikes_are_those_of_the_gap_table(ann, batch, reports, mode):
    report = reports[mode]
    snn = convert(ann)
    totals = SpikeTotals()
    with torch.no_grad(), snn.running_as(mode), snn.monitored(totals):
        snn(*batch)
    assert report.total("spikes") == pytest.approx(totals.total() / 3, rel=1e-12)
    gap = measure_gap(ann, snn, *batch, mode)
    assert report.firing_rate == pytest.approx(gap.prediction.firing_rate, rel=1e-12)
    assert report.settle_steps == gap.settle_steps


@pytest.mark.parametrize("mode", [STREAM, AUTO], ids=["stream", "settled"])
def test_accumulates_by_convolving_recorded_trains(ann, batch, reports, mode):
    """Independent of the hooks: the events as a monitor sees them, convolved with ones."""
    snn = convert(ann, mode)
    _, trains = spike_trains(snn, *batch)
    modules, layers = dict(snn.net.named_modules()), by_name(reports[mode])
    for name, events in trains.items():
        layer = modules[_follower(name)]
        fired, ones = (events != 0).double().flatten(0, 1), torch.ones_like(layer.weight)
        conv = isinstance(layer, nn.Conv2d)
        operations = F.conv2d(fired, ones, None, layer.stride, layer.padding) if conv else F.linear(fired, ones)
        assert layers[_follower(name)].ac == pytest.approx(float(operations.sum()) / 3, rel=1e-12)


def test_constant_currents_are_computed_once(ann, batch, reports):
    """Dense operations of T steps are T times the ANN's, but for the layers that see the same input in every step."""
    dense = {layer.name: layer.dense for layer in count_operations(ann, *batch).layers}
    for mode in (LAYER_SYNC, STREAM, AUTO):
        for layer in reports[mode].layers:
            once = layer.name in ("head", "time_embedding.timembedding.1")
            once |= mode == LAYER_SYNC and layer.inputs == "real"  # on the window's sum
            if layer.kind in SYNAPTIC:
                assert layer.dense == dense[layer.name] * (1 if once else reports[mode].steps_run)


def test_settling_adds_its_steps(ann, batch, reports):
    neurons = reports[STREAM].total("neurons")
    assert (reports[LAYER_SYNC].steps_run, reports[STREAM].steps_run) == (3, 3)
    for mode, steps in ((LAYER_SYNC, 3), (STREAM, 3), (replace(STREAM, settle_steps=2), 5)):
        report = count_operations(convert(ann, mode), *batch)
        assert report.total("updates") == neurons * steps == neurons * report.steps_run
    auto = reports[AUTO]
    assert auto.settle_steps >= 1
    assert auto.steps_run == 3 + auto.settle_steps + 1  # the silent step that ends it
    assert auto.total("updates") == neurons * auto.steps_run
    assert auto.total("spikes") > reports[STREAM].total("spikes")


def test_norms_run_once_per_window_or_in_every_step(ann, batch, reports):
    values = {
        layer.name: layer.mac / NORM_MACS for layer in count_operations(ann, *batch).layers if layer.kind == "norm"
    }
    assert values["tail.0"] == 8 * 16 and values["downblocks.0.block1.0"] == 8 * 16
    for name, count in values.items():
        first = name == "downblocks.0.block1.0"  # behind the head: a constant current
        sync, stream = by_name(reports[LAYER_SYNC])[name], by_name(reports[STREAM])[name]
        assert (sync.mac, sync.additions) == (NORM_MACS * count, 0 if first else 3 * count)
        assert (stream.mac, stream.additions) == (NORM_MACS * count * (1 if first else 3), 0 if first else 3 * count)
    published = count_operations(convert(ann), *batch, replace(STREAM, stream_norm="per_step"))
    assert by_name(published)["tail.0"].mac == 3 * NORM_MACS * 8 * 16 and by_name(published)["tail.0"].additions == 0


def test_frozen_norm_is_one_affine_map_per_step(ann, batch):
    snn = convert(ann, replace(STREAM, stream_norm="frozen"))
    freeze_norms(ann, snn, *random_batch(ann, 40), bins=2)
    tail = by_name(count_operations(snn, *batch))["tail.0"]
    assert (tail.mac, tail.additions, tail.states) == (3 * 8 * 16, 0, 0)


def test_dense_operations_of_an_ann_by_hand(ann, batch):
    """4×4 images: a 3×3 convolution with padding has (3·4 − 2)² = 100 positions inside, on 2×2 it has 16."""
    report = count_operations(ann, *batch)
    layers = by_name(report)
    expected = {"head": 100 * 3 * 8, "downblocks.0.block1.2": 100 * 8 * 8, "downblocks.1.main": 25 * 8 * 8}
    expected |= {"downblocks.2.block2.3": 16 * 16 * 16, "upblocks.2.main": 100 * 16 * 16, "tail.2": 100 * 8 * 3}
    expected |= {"downblocks.2.shortcut": 4 * 8 * 16, "time_embedding.timembedding.3": 32 * 32}
    assert {name: layers[name].dense for name in expected} == expected
    assert layers["head"].mac == expected["head"] and layers["head"].inputs == "real"
    assert layers["tail.2"].inputs == "levels" and 0 < layers["tail.2"].mac < expected["tail.2"]
    assert layers["downblocks.0.sum"].additions == 2 * 8 * 16  # time embedding, residual
    assert (report.total("ac"), report.total("spikes"), report.latency_steps) == (0, 0, None)
    assert report.total("parameters") == sum(p.numel() for p in ann.parameters())


def test_zero_weights_of_quantized_layers_take_no_operations(batch):
    net = random_ann(weight_bits=2)
    layer = net.tail[2].bits, net.downblocks[0].block1[2]
    assert layer[0] == 8 and float((layer[1].quantized_weight() == 0).double().mean()) > 0.1
    found = by_name(count_operations(convert(net, STREAM), *batch))["downblocks.0.block1.2"]
    _, trains = spike_trains(convert(net, STREAM), *batch)
    fired = (trains["downblocks.0.block1.1"] != 0).double().flatten(0, 1)
    expected = F.conv2d(fired, (layer[1].quantized_weight() != 0).double(), padding=1).sum() / 3
    assert found.ac == pytest.approx(float(expected), rel=1e-12)
    assert found.weight_bits == 2 and found.parameter_bits == 2 * 8 * 8 * 9 + 32 * (8 + 1)


def test_counts_do_not_depend_on_the_batch_size_and_leave_nothing_behind(ann, batch):
    snn = convert(ann, STREAM)
    one, all_at_once = (count_operations(snn, *batch, batch_size=n) for n in (1, 3))
    for a, b in zip(one.layers, all_at_once.layers, strict=True):
        assert a == b or all(
            getattr(a, f) == pytest.approx(getattr(b, f)) for f in ("ac", "mac", "spikes", "dense", "values", "states")
        )
    assert snn.clock.monitor is None and not snn.clock.materialise and snn.spiking == STREAM
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in snn.modules())
    with pytest.raises(ValueError, match="no images"):
        count_operations(snn, batch[0][:0], batch[1][:0])
