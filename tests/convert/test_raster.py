"""A raster is what an independent listener hears of the chosen neurons, and the choice is made once for all modes."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.convert.raster import record_raster
from ann2snn.errors import UserError
from ann2snn.kernels import spread_counts
from ann2snn.run.rasters import load_rasters, save_rasters
from tests.helpers import ann_counts, random_ann, random_batch, spike_trains

LAYER_SYNC = SpikingConfig()
STREAM = SpikingConfig("stream")
SETTLED = SpikingConfig("stream", settle_steps="auto")
TWO_MORE = SpikingConfig("stream", settle_steps=2)
UNSIGNED = SpikingConfig("stream", signed=False, stream_norm="per_step", if_neuron="reference")
MODES = [LAYER_SYNC, STREAM, SETTLED, TWO_MORE, UNSIGNED]


@pytest.fixture(scope="module")
def network():
    ann = random_ann()
    return ann, convert(ann), *random_batch(ann, 1)


def raster_of(network, mode: SpikingConfig, **options):
    _, snn, x, t = network
    with snn.running_as(mode):
        return record_raster(snn, x, t, **options)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_raster_holds_the_events_that_a_monitor_sees(network, mode):
    _, snn, x, t = network
    raster = raster_of(network, mode, neurons_per_layer=7)
    with snn.running_as(mode):
        _, trains = spike_trains(snn, x, t)
    if mode == LAYER_SYNC:  # counts, which a layer fires evenly over a window of its own
        trains = {name: spread_counts(counts[0], 3) for name, counts in trains.items()}
    assert raster.spiking == mode and raster.window == 3 and raster.t == float(t)
    assert list(raster.layers) == list(trains)  # in the order in which they compute
    steps = len(trains["tail.1"])
    assert raster.events.shape == (len(trains), 7, steps) and raster.events.dtype == torch.int8
    for name, indices, events in zip(raster.layers, raster.neurons, raster.events, strict=True):
        whole = trains[name].reshape(steps, -1)
        assert indices.unique().numel() == 7
        assert torch.equal(events.T.double(), whole[:, indices])


def test_half_of_the_neurons_fire_in_the_quantized_ann_where_as_many_do(network):
    ann, _, x, t = network
    _, levels = ann_counts(ann, x, t)
    raster = raster_of(network, STREAM, neurons_per_layer=8)
    for name, indices in zip(raster.layers, raster.neurons, strict=True):
        fires = levels[name].flatten() > 0
        assert fires[indices].sum() >= min(4, int(fires.sum()))


def test_the_choice_follows_from_the_seed_and_is_the_same_in_every_mode(network):
    first = raster_of(network, LAYER_SYNC, seed=3)
    torch.manual_seed(12345)  # the choice draws from no global state
    assert all(torch.equal(first.neurons, raster_of(network, mode, seed=3).neurons) for mode in MODES)
    assert not torch.equal(first.neurons, raster_of(network, LAYER_SYNC, seed=4).neurons)


def test_settling_comes_after_the_window_and_ends_silent(network):
    window, settled = raster_of(network, STREAM), raster_of(network, SETTLED)
    assert torch.equal(settled.events[..., :3], window.events)
    assert settled.events.shape[2] > 3 and not settled.events[..., -1].any()
    layer_sync = raster_of(network, LAYER_SYNC)
    assert torch.equal(settled.events.sum(2), layer_sync.events.sum(2))  # net counts are the quantizer's levels


def test_recording_leaves_the_network_as_it_was(network):
    _, snn, _, _ = network
    raster_of(network, LAYER_SYNC)
    assert snn.spiking == LAYER_SYNC and snn.clock.monitor is None


def test_the_smallest_layer_limits_all(network):
    _, snn, x, t = network
    _, trains = spike_trains(snn, x, t)
    smallest = min(events[0, 0].numel() for events in trains.values())
    raster = raster_of(network, STREAM, neurons_per_layer=10**6)
    assert raster.neurons.shape[1] == smallest
    layer = [events[0, 0].numel() for events in trains.values()].index(smallest)
    assert raster.neurons[layer].tolist() == list(range(smallest))


def test_one_image_at_a_time(network):
    _, snn, x, t = network
    for wrong in ((x.repeat(2, 1, 1, 1), t), (x, t.repeat(2))):
        with pytest.raises(ValueError, match="one image"):
            record_raster(snn, *wrong)
    with pytest.raises(ValueError, match="at least 1"):
        record_raster(snn, x, t, neurons_per_layer=0)


def test_the_file_brings_back_what_was_saved(network, tmp_path):
    rasters = [raster_of(network, mode) for mode in MODES]
    save_rasters(tmp_path / "raster.npz", rasters)
    assert [path.name for path in tmp_path.iterdir()] == ["raster.npz"]
    for saved, loaded in zip(rasters, load_rasters(tmp_path / "raster.npz"), strict=True):
        assert torch.equal(saved.neurons, loaded.neurons) and torch.equal(saved.events, loaded.events)
        for name in ("spiking", "layers", "window", "t"):
            assert getattr(saved, name) == getattr(loaded, name)


def test_a_file_is_of_one_choice_of_neurons(network, tmp_path):
    with pytest.raises(ValueError, match="same neurons"):
        save_rasters(tmp_path / "raster.npz", [raster_of(network, STREAM, seed=s) for s in (0, 1)])
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"raster\.npz"):
        load_rasters(tmp_path / "raster.npz")
