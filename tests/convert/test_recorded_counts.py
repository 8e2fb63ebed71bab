"""Spikes are those of the program before neurons held levels: recorded from it, in float64, at every number of steps.

tests/golden/stream_counts.json: of random U-Nets of 2 to 4 bits, standard and spike-driven, signed, unsigned and in
bursts of 2: positive and negative spikes of every layer after T, T + 1, T + 2 and T + 3 time steps, and the norm of
what the network answered.
"""

import json

import pytest

from ann2snn.convert import convert
from tests.helpers import GOLDEN, random_ann, random_batch, spike_trains

RECORDED = json.loads((GOLDEN / "stream_counts.json").read_text())
MODES = {"signed": {}, "unsigned": {"signed": False}, "burst 2": {"burst": 2}}


@pytest.mark.parametrize("name", RECORDED)
def test_spikes_and_answers_are_those_that_were_recorded(name):
    bits, driven, mode = name.split(", ")
    bits = int(bits.split()[0])
    ann = random_ann(seed=bits, bits=bits, spike_driven=driven.endswith("True"), image_size=8)
    batch = random_batch(ann, 2, seed=bits)
    for settle, recorded in enumerate(RECORDED[name]["steps"].values()):
        output, trains = spike_trains(convert(ann, schedule="stream", settle_steps=settle, **MODES[mode]), *batch)
        assert list(trains) == RECORDED[name]["layers"]
        assert [int(events.clamp(min=0).sum()) for events in trains.values()] == recorded["positive"]
        assert [int(-events.clamp(max=0).sum()) for events in trains.values()] == recorded["negative"]
        assert float(output.norm()) == pytest.approx(recorded["norm"], rel=1e-12)
