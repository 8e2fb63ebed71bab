"""A raster of a directly trained network is what an independent listener hears of the chosen neurons."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ann2snn.config import DirectSpiking
from ann2snn.convert.raster import record_direct_raster
from ann2snn.errors import UserError
from ann2snn.nets.direct import DirectDenoiser
from ann2snn.nets.fsddim import FSDDIM, FSDDIMConfig
from ann2snn.nets.sddpm import SDDPM, SDDPMConfig
from ann2snn.run.rasters import load_rasters, save_rasters
from ann2snn.stages.direct_raster import write_direct_raster
from tests.fill import deterministic_fill
from tests.helpers import random_batch, spike_trains

SHAPE = {"in_channels": 1, "image_size": 4, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "diffusion_steps": 20}
NETWORKS = {
    "sddpm": lambda: SDDPM(SDDPMConfig(**SHAPE, spike_steps=4)),
    "sdm": lambda: SDDPM(SDDPMConfig(**SHAPE, spike_steps=3, tsm=True, threshold=0.75)),
    "fsddim": lambda: FSDDIM(FSDDIMConfig(**SHAPE, spike_steps=5)),
}


def made(name: str) -> DirectDenoiser:
    net = NETWORKS[name]()
    deterministic_fill(net)
    return net.eval()


@pytest.fixture(params=NETWORKS)
def net(request) -> DirectDenoiser:
    return made(request.param).double()


def test_a_raster_holds_the_spikes_that_a_monitor_sees(net):
    x, t = random_batch(net, 1)
    raster = record_direct_raster(net, x, t, neurons_per_layer=7)
    _, trains = spike_trains(net, x, t)
    assert raster.layers == tuple(trains) and len(trains) == len(list(net.neurons()))  # as they compute
    assert raster.window == net.spike_steps and raster.t == float(t)
    assert raster.events.shape == (len(trains), 7, net.spike_steps) and raster.events.dtype == torch.int8
    for name, indices, events in zip(raster.layers, raster.neurons, raster.events, strict=True):
        whole = trains[name][:, 0].flatten(1)
        assert indices.unique().numel() == 7
        assert torch.equal(events.T.double(), whole[:, indices])
        assert whole[:, indices].any(0).sum() >= min(4, int(whole.any(0).sum()))  # half of them fire, if as many do
    assert raster.events.any() and raster.events.min() == 0 and raster.events.max() == 1
    assert all(neuron.monitor is None for _, neuron in net.neurons())


def test_it_says_how_the_network_ran():
    x, t = random_batch(net := made("sdm").double(), 1)
    raster = record_direct_raster(net, x, t)
    assert raster.spiking == DirectSpiking("sddpm", 3, 0.75, True)
    assert raster.is_direct and raster.spiking.label == "SDM 3 steps, threshold 0.75"
    net.set_threshold(1)
    assert record_direct_raster(net, x, t).spiking.label == "SDM 3 steps"


def test_the_choice_follows_from_the_seed(net):
    x, t = random_batch(net, 1)
    first = record_direct_raster(net, x, t, seed=3)
    torch.manual_seed(12345)
    assert torch.equal(first.neurons, record_direct_raster(net, x, t, seed=3).neurons)
    assert not torch.equal(first.neurons, record_direct_raster(net, x, t, seed=4).neurons)


def test_one_image_at_a_time(net):
    x, t = random_batch(net, 1)
    for wrong in ((x.repeat(2, 1, 1, 1), t), (x, t.repeat(2))):
        with pytest.raises(ValueError, match="one image"):
            record_direct_raster(net, *wrong)
    with pytest.raises(ValueError, match="at least 1"):
        record_direct_raster(net, x, t, neurons_per_layer=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stage_writes_one_raster_from_the_middle_of_the_path(name, tmp_path):
    net = made(name)  # in float32, as it was trained
    before = {key: value.clone() for key, value in net.state_dict().items()}
    write_direct_raster(tmp_path / "raster.npz", net, seed=0)
    [raster] = load_rasters(tmp_path / "raster.npz")
    assert raster.spiking == net.spiking and raster.window == net.spike_steps == raster.events.shape[2]
    assert 5 <= raster.t <= 14 and raster.events.any()  # of 20 times
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    write_direct_raster(tmp_path / "again.npz", net, seed=0)
    [again] = load_rasters(tmp_path / "again.npz")
    assert torch.equal(again.neurons, raster.neurons) and torch.equal(again.events, raster.events)


def changed_file(path: Path, mode: object = None, events: np.ndarray | None = None) -> Path:
    with np.load(path) as arrays:
        content = dict(arrays)
    content["modes"] = content["modes"] if mode is None else np.array([json.dumps(mode)])
    content["events_0"] = content["events_0"] if events is None else events
    np.savez(path.with_name("changed.npz"), **content)
    return path.with_name("changed.npz")


def test_a_file_that_no_network_can_have_written_is_refused(tmp_path):
    x, t = random_batch(net := made("sddpm").double(), 1)
    raster, path = record_direct_raster(net, x, t), tmp_path / "raster.npz"
    save_rasters(path, [raster])
    settings = net.spiking.to_dict()
    assert load_rasters(changed_file(path, settings))[0].spiking == net.spiking
    wrong = [{"arch": "<b>"}, {"arch": 3}, {"spike_steps": 0}, {"spike_steps": 2.5}, {"spike_steps": "4"}]
    wrong += [{"threshold": 0}, {"threshold": float("inf")}, {"threshold": None}, {"tsm": "no"}, {"more": 1}]
    for change in wrong:
        with pytest.raises(UserError, match="as spike rasters"):
            load_rasters(changed_file(path, settings | change))
    with pytest.raises(UserError, match="0 to 1 spikes"):
        load_rasters(changed_file(path, events=-raster.events.numpy()))
