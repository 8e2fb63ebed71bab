"""Energy by hand, latency by its formulas, and what goes into the file."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.config import SpikingConfig
from ann2snn.cost import FP32, INT8, INT8_STATE16, CostReport, LayerCost
from quant import QuantReLU
from tests.helpers import random_ann, random_batch

SPIKING = LayerCost("a", "conv", "spikes", neurons=0, ac=100.0, dense=900.0, weight_reads=64, values=10, activations=32)
REAL = LayerCost("b", "linear", "real", mac=10.0, dense=20.0, weight_bits=4, weight_reads=8)
NEURON = LayerCost("c", "neuron", neurons=5, spikes=6, updates=15.0, states=30.0)
NORM = LayerCost("d", "norm", mac=7.0, additions=3.0)


def report(*layers: LayerCost, schedule: str | None = "stream", settle: int | str = 0, **changes) -> CostReport:
    spiking = SpikingConfig(schedule, settle_steps=settle) if schedule else None
    values = {"spiking": spiking, "bits": 2, "images": 1, "depth": 20, "settle_steps": 0, "steps_run": 3.0}
    return CostReport(**values | changes, layers=layers)


def test_prices_are_the_published_ones():
    assert FP32.mac() == pytest.approx(4.6) and FP32.add == 0.9
    assert INT8.mac() == pytest.approx(0.23) and INT8.add == 0.03


def test_narrow_multiplier_shrinks_and_its_adder_does_not():
    assert INT8.mac(2, 8) == pytest.approx(0.2 / 4 + 0.03)
    assert INT8.mac(2, 4) == pytest.approx(0.2 / 8 + 0.03)
    assert INT8.mac(32, 32) == INT8.mac()  # never wider than the arithmetic


def test_compute_energy_by_hand():
    counted = report(SPIKING, REAL, NEURON, NORM)
    fp32_layer_b = 3.7 * 4 / 32 + 0.9  # 4-bit weights
    assert counted.energy(FP32).compute == pytest.approx(0.9 * (100 + 15 + 3) + 10 * fp32_layer_b + 7 * 4.6)
    assert counted.energy(INT8).compute == pytest.approx(0.03 * (100 + 15 + 3) + 10 * (0.1 + 0.03) + 7 * 0.23)
    assert counted.energy(FP32, all_mac=True).compute - counted.energy(FP32).compute == pytest.approx(100 * 3.7)


def test_memory_energy_by_hand():
    """A signed spike takes 2 bits; 50 pJ for every 32 bits."""
    bits = 64 * 32 + 10 * 32 + 32 * 2 + 8 * 4 + 30 * 32
    found = report(SPIKING, REAL, NEURON, NORM)
    assert found.energy(FP32).memory == pytest.approx(bits / 32 * 50)
    assert found.energy(INT8_STATE16).memory == pytest.approx((64 * 8 + 10 * 8 + 64 + 8 * 4 + 30 * 16) / 32 * 50)


def test_memory_of_events_that_fetch_their_weights_by_hand():
    """Each accumulates into a sum that is read and written; a layer without sums only fetches."""
    fetching = (replace(SPIKING, weight_fetches=90.0, states=8.0), replace(REAL, weight_fetches=10.0), NEURON)
    found = report(*fetching).energy(FP32)
    bits = 90 * 32 + 10 * 32 + 32 * 2 + 2 * 90 * 32 + 10 * 4 + 30 * 32
    assert found.memory_by_event == pytest.approx(bits / 32 * 50)
    assert found.total_by_event == found.compute + found.memory_by_event


@pytest.mark.parametrize(
    ("way", "bits"),
    [
        ({"schedule": "layer_sync"}, 2),  # counts of 0 to 3
        ({"schedule": "layer_sync", "carried": True}, 3),  # changes of −3 to 3
        ({"schedule": "stream"}, 2),
        ({"schedule": "stream", "signed": False}, 1),
        ({"schedule": "stream", "burst": 3}, 3),
        ({"schedule": "layer_sync", "window": 30}, 5),
    ],
)
def test_an_event_is_as_wide_as_its_values_need(way, bits):
    changes = {name: way[name] for name in ("carried", "window") if name in way}
    spiking = SpikingConfig(**{name: value for name, value in way.items() if name not in changes})
    assert report(NEURON, spiking=spiking, **changes).activation_bits == bits


def test_baselines_by_hand():
    levels = LayerCost("a", "conv", "levels", mac=40.0, dense=100.0, weight_reads=10, activations=16)
    found = report(levels, REAL, NORM, schedule=None).energies()
    assert found["fp32"]["fp32"].compute == pytest.approx(4.6 * (100 + 20 + 7) + 0.9 * 3)
    assert found["fp32"]["fp32"].memory == pytest.approx((10 * 32 + 8 * 32 + 16 * 32) / 32 * 50)
    quantized = 100 * (0.05 + 0.03) + 20 * (0.1 + 0.03) + 7 * 0.23 + 3 * 0.03
    assert found["quantized"]["int8"].compute == pytest.approx(quantized)
    assert found["quantized"]["int8"].memory == pytest.approx((10 * 8 + 8 * 4 + 16 * 2) / 32 * 50)
    skipping = 40 * (0.05 + 0.03) + 10 * (0.1 + 0.03) + 7 * 0.23 + 3 * 0.03
    assert found["quantized_skipping_zeros"]["int8"].compute == pytest.approx(skipping)
    assert set(report(levels, schedule=None, bits=32).energies()) == {"fp32"}
    changes = replace(levels, mac=7.0)
    by_differences = report(levels, schedule=None, difference_layers=(changes,)).energies()["quantized_differences"]
    assert by_differences["int8"].compute == pytest.approx(7 * (0.2 * 3 / 8 + 0.03))  # a difference has a bit more


@pytest.mark.parametrize(
    ("schedule", "settle", "plain", "delayed"),
    [("stream", 0, 3, 23), ("stream", 2, 5, 25), ("layer_sync", 0, 60, 60), (None, 0, None, None)],
)
def test_latency(schedule, settle, plain, delayed):
    found = report(NEURON, schedule=schedule, settle=settle, settle_steps=settle)
    assert (found.latency_steps, found.latency_steps_delayed) == (plain, delayed)


def test_firing_rate_is_per_neuron_and_window_step():
    assert report(NEURON).firing_rate == 6 / (5 * 3)
    with pytest.raises(ValueError, match="weight_bits"):
        report(NEURON).total("weight_bits")


def test_a_small_network_by_hand():
    """2-bit levels (Δ = 1) of two inputs, a linear map with one zero weight, and a second such pair."""
    net = nn.Sequential(QuantReLU(2), nn.Linear(2, 2, bias=False), QuantReLU(2), nn.Linear(2, 1, bias=False)).double()
    for quantizer in (net[0], net[2]):
        quantizer.act_alpha.data.fill_(3.0)
    net[1].weight.data = torch.tensor([[1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    net[3].weight.data.fill_(1.0)
    calls = [(torch.tensor([value], dtype=torch.float64),) for value in ([2.0, 0.0], [1.0, 1.0], [1.0, 3.0])]
    # levels of net[0]: (2, 0) → (1, 1) → (1, 3); of net[2]: (2, 0) → (2, 0) → (3, 0), as 1 + 3 is clipped.
    account = ann2snn.cost(ann2snn.convert(net), trajectory=calls, carry=True)
    first, later = account.first, account.later
    assert [layer.name for layer in account.layers] == ["0", "1", "2", "3"]
    assert [layer.ac for layer in first.layers] == [0, 2 * 1, 0, 2 * 1] and first.total("spikes") == 2 + 2
    assert [2 * layer.ac for layer in later.layers] == [0, (1 * 1 + 1 * 2) + 2 * 2, 0, 1]
    assert [2 * layer.weight_fetches for layer in later.layers] == [0, (1 + 2) + 2, 0, 1]
    assert 2 * later.total("spikes") == (1 + 1) + 2 + 1 and later.total("mac") == 0
    # net[1] answers (2, 0), (2, −1), (4, −3)
    assert [2 * layer.updates for layer in later.layers] == [0 + 2 + 1, 0, 1 + 2, 0]
    assert account.energy(INT8).compute == pytest.approx(0.03 * (account.total("ac") + account.total("updates")))
    baseline = ann2snn.cost(net, trajectory=calls)
    assert [3 * layer.mac for layer in baseline.layers] == [0, 1 + 3 + 3, 0, 1 + 1 + 1]
    assert [3 * layer.mac for layer in baseline.difference_layers] == [0, 1 + 3 + 2, 0, 1 + 0 + 1]
    assert baseline.dense_mac == 4 + 2 and baseline.bits == 2
    looks = (2 + 2 + 1) + (2 + 1 + 2)
    expected = ((6 + 2) * (0.2 * 3 / 8 + 0.03) + looks * 0.03) / 3
    assert baseline.energies()["quantized_differences"]["int8"].compute == pytest.approx(expected)


def test_account_of_a_network_is_plain_json():
    net = random_ann()
    snn = ann2snn.convert(net, schedule="stream", settle_steps="auto")
    for found in (ann2snn.cost(snn, *random_batch(net)), ann2snn.cost(net, *random_batch(net))):
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["totals"]["mac"] == found.total("mac") == sum(layer["mac"] for layer in plain["layers"])
        assert plain["label"] == found.label and plain["steps_run"] == found.steps_run
    assert found.dense_mac > found.total("dense")


def test_same_run_costs_more_where_accumulates_are_multiplications():
    net = random_ann()
    found = ann2snn.cost(ann2snn.convert(net), *random_batch(net)).energies()
    for prices in ("fp32", "int8"):
        assert found["all_mac"][prices].compute > found["counted"][prices].compute
        assert found["all_mac"][prices].memory == found["counted"][prices].memory > 0
