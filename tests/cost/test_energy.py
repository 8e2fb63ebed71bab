"""Energy by hand, latency by its formulas, and what goes into the file."""

import json

import pytest

import ann2snn
from ann2snn.config import SpikingConfig
from ann2snn.cost import FP32, INT8, CostReport, LayerCost
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
    assert report(SPIKING, REAL, NEURON, NORM).energy(FP32).memory == pytest.approx(bits / 32 * 50)
    assert report(SPIKING, schedule="layer_sync").energy(INT8).memory == pytest.approx((64 * 8 + 10 * 8 + 32) / 32 * 50)


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
