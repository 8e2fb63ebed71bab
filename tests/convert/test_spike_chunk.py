"""--spike_chunk: the window in pieces is the window as a whole, in less memory."""

import math

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, measure_gap
from ann2snn.convert.raster import record_raster
from ann2snn.cost.count import count_operations
from ann2snn.errors import UserError
from ann2snn.finetune.capture import capture_inputs, run_block
from ann2snn.stages.convert import converted
from tests.helpers import assert_close, assert_equal, random_ann, random_batch, spike_trains

MODES = {
    "cumulative": {},
    "unsigned": {"signed": False},
    "burst": {"burst": 3},
    "per_step": {"stream_norm": "per_step"},
    "reference": {"stream_norm": "per_step", "if_neuron": "reference"},
    "unsigned_reference": {"stream_norm": "per_step", "if_neuron": "reference", "signed": False},
    "settled": {"settle_steps": 5},
    "settled_burst": {"settle_steps": "auto", "burst": 2},
}
#: Of what measuring has to do with the mode: each of them settles or not, and takes spikes back or not.
QUICK = ("settled_burst", "unsigned")
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
EXACT = 1e-12


def network(bits: int = 3, **mode):
    """(quantized ANN, its stream network); T = 7 at 3 bits."""
    ann = random_ann(bits=bits)
    return ann, converted(ann, SpikingConfig("stream", **mode))


@modes
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_output_and_every_spike_are_those_of_the_whole_window(mode, chunk):
    _, snn = network(**mode)
    batch = random_batch(snn)
    expected, whole = spike_trains(snn, *batch)
    settled = snn.last_settle_steps
    snn.set_spike_chunk(chunk)
    output, trains = spike_trains(snn, *batch)
    assert_close(output, expected, EXACT)
    assert trains.keys() == whole.keys() and snn.last_settle_steps == settled
    for name in whole:
        assert_equal(trains[name], whole[name])


@pytest.mark.parametrize("settle", [0, 5])
def test_no_layer_sees_more_rows_than_asked_for(settle):
    _, snn = network(bits=4, settle_steps=settle)
    rows = []
    snn.net.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    for chunk, steps in ((0, [15] + [5] * (settle > 0)), (4, [4, 4, 4, 3] + [4, 1] * (settle > 0))):
        snn.set_spike_chunk(chunk)
        rows.clear()
        with torch.no_grad():
            snn(*random_batch(snn))
        assert rows == [2 * n for n in steps]


def test_memory_in_use_does_not_grow_with_the_window():
    """Bytes that torch holds at once during a call, from the allocations and releases its profiler records."""

    def peak(bits: int, chunk: int) -> int:
        _, snn = network(bits=bits)
        snn.set_spike_chunk(chunk)
        batch = random_batch(snn)
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiler:
            snn(*batch)
        most = held = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    whole, chunks = peak(5, 0), {bits: peak(bits, 2) for bits in (3, 5)}
    assert whole > 5 * chunks[5]
    assert chunks[5] < 1.1 * chunks[3]


def test_under_layer_sync_there_is_nothing_to_cut():
    snn = convert(random_ann(bits=3))
    batch = random_batch(snn)
    with torch.no_grad():
        expected = snn(*batch)
        snn.set_spike_chunk(2)
        assert_equal(snn(*batch), expected)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, mode in MODES.items()],
)
def test_gap_cost_and_raster_are_the_same(mode):
    ann, snn = network(**mode)
    x, t = random_batch(snn, 3)

    def measured() -> tuple:
        return measure_gap(ann, snn, x, t), count_operations(snn, x, t), record_raster(snn, x[:1], t[:1])

    gap, cost, raster = measured()
    snn.set_spike_chunk(2)
    gap_2, cost_2, raster_2 = measured()
    assert snn.spike_chunk == 2
    assert (gap_2.spikes_per_image, gap_2.settle_steps) == (gap.spikes_per_image, gap.settle_steps)
    for a, b in zip(gap_2.rows(), gap.rows(), strict=True):
        same = (a.firing_rate, a.negative_share) == (b.firing_rate, b.negative_share)
        assert a.block == b.block and (same or math.isnan(b.firing_rate))
        assert a.error == pytest.approx(b.error, rel=1e-9, abs=EXACT)
    assert cost_2.steps_run == cost.steps_run
    for a, b in zip(cost_2.layers, cost.layers, strict=True):
        assert (a.name, a.inputs) == (b.name, b.inputs)
        for name in ("ac", "mac", "spikes", "dense", "neurons", "updates", "additions", "states"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9), (a.name, name)
    assert_equal(raster_2.events, raster.events)


@pytest.mark.parametrize("settle", [0, 3])
@pytest.mark.parametrize("name", ["downblocks.0", "upblocks.1", "tail"])
def test_a_blocks_inputs_output_and_gradients_are_the_same(name, settle):
    """What fine-tuning is made of; the gradient flows from chunk to chunk."""
    _, snn = network(settle_steps=settle)
    batch, found = random_batch(snn), []
    parameters = list(dict(snn.blocks())[name].parameters())
    for chunk in (0, 3):
        snn.set_spike_chunk(chunk)
        inputs = capture_inputs(snn, name, *batch)
        assert [c.steps for c in inputs.chunks] == ([7] if not chunk else [3, 3, 1]) + [3] * (settle > 0)
        output = run_block(snn, name, inputs)
        found.append((inputs.mean(), output, torch.autograd.grad(output.square().sum(), parameters)))
    (means, output, gradients), (means_2, output_2, gradients_2) = found
    assert_close(output_2, output, EXACT)
    for a, b in zip((*means_2, *gradients_2), (*means, *gradients), strict=True):
        assert_close(a, b, 1e-9)


def test_it_is_no_property_of_the_network():
    _, snn = network()
    before = snn.state_dict().keys(), snn.spiking.to_dict()
    snn.set_spike_chunk(2)
    assert (snn.state_dict().keys(), snn.spiking.to_dict()) == before


@pytest.mark.parametrize("bad", [-1, 2.5, "2", None, float("nan")])
def test_what_is_no_number_of_steps_is_refused(bad):
    _, snn = network()
    with pytest.raises(UserError, match="--spike_chunk"):
        snn.set_spike_chunk(bad)
    assert snn.spike_chunk == 0
