"""Neurons that ignore small changes: without a dead zone the network itself, with one fewer spikes and an error."""

import torch

import ann2snn
from ann2snn.convert import relative_error
from benchmarks import dead_zone
from tests.helpers import random_ann


def test_no_zone_is_carrying_and_a_zone_trades_spikes_for_error():
    ann = random_ann(bits=3, ch=4, ch_mult=(1,))
    calls = ann2snn.trajectory(ann, 1, steps=8)
    rows = [dead_zone.measure(ann, zone, calls) for zone in (0.0, 0.25, 1.0)]
    account = ann2snn.cost(ann2snn.convert(ann), trajectory=calls, carry=True)
    assert rows[0]["error"] == 0 and rows[0]["spikes"] == account.later.total("spikes")
    assert rows[0]["spikes"] > rows[1]["spikes"] > rows[2]["spikes"] and rows[2]["error"] > 0


def test_a_level_is_never_further_from_its_input_than_the_zone_says():
    ann = random_ann(bits=3, ch=4, ch_mult=(1,))
    snn, zone = dead_zone.with_dead_zone(ann, 0.5), 0.5
    name, neuron = next(snn.neurons())
    inputs = []
    neuron.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), snn.carrying():
        for x, t in ann2snn.trajectory(ann, 1, steps=8):
            snn(x, t)
            levels = neuron.levels.fitted(inputs[-1].dim())
            wanted = (inputs[-1] / levels.step).clamp(levels.lo, levels.hi)
            assert ((wanted - neuron.states[0]).abs() <= 0.5 + zone + 1e-9).all()
        assert relative_error(snn(x, t), ann(x, t)) < 1
