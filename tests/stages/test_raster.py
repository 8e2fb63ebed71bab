"""The conversion stage's raster: layer_sync beside stream, settled wherever it may settle."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.generate.probe import OwnPath
from ann2snn.run.rasters import load_rasters
from ann2snn.stages.convert import gap_reports, write_raster
from tests.helpers import random_ann

PUBLISHED = SpikingConfig("stream", stream_norm="per_step", if_neuron="reference")
MODES = [
    (SpikingConfig(), SpikingConfig("stream", settle_steps="auto")),
    (SpikingConfig("stream", settle_steps=2), SpikingConfig("stream", settle_steps=2)),
    (PUBLISHED, PUBLISHED),
]


@pytest.mark.parametrize(("asked", "shown"), MODES)
def test_stream_settles_as_asked_or_until_silent_where_it_can(tmp_path, asked, shown):
    ann = random_ann().float()
    write_raster(tmp_path / "raster.npz", OwnPath(ann, 1), convert(ann, asked))
    layer_sync, stream = load_rasters(tmp_path / "raster.npz")
    assert layer_sync.spiking == SpikingConfig() and stream.spiking == shown
    assert 0 < stream.t < ann.config.diffusion_steps - 1  # halfway along the path
    if shown.settle_steps == "auto":
        assert torch.equal(stream.events.sum(2), layer_sync.events.sum(2))


def test_a_neuron_that_may_never_fall_silent_is_measured_without_settling():
    ann = random_ann()
    spiking = SpikingConfig("stream", if_neuron="reference")  # cumulative norm
    labels = [report.label for report in gap_reports(OwnPath(ann, 1), convert(ann, spiking), spiking)]
    assert labels == ["layer_sync", "stream"]


@pytest.mark.parametrize("burst", [1, 3])
def test_a_silent_neuron_s_potential_lies_between_the_thresholds(tmp_path, burst):
    """What is left of the input is less than a spike's worth, unless the neuron stands at the end of its levels."""
    ann = random_ann().float()
    write_raster(tmp_path / "raster.npz", OwnPath(ann, 1), convert(ann, SpikingConfig("stream", burst=burst)))
    layer_sync, stream = load_rasters(tmp_path / "raster.npz")
    for raster in (layer_sync, stream):
        levels, left = raster.events.long().cumsum(2), raster.potentials.double()
        assert left.shape == raster.events.shape
        at_rest = left[..., -1][(levels[..., -1] > 0) & (levels[..., -1] < 3)]
        assert len(at_rest) > 50 and at_rest.min() >= -1e-3 and at_rest.max() <= 1 + 1e-3
    # Before a neuron spends what arrives, a spike sent in a step takes one threshold away from it.
    first = stream.potentials[..., 0].double() + stream.events[..., 0]
    assert ((stream.events[..., 0] == 1) == (first >= 1 - 1e-3)).float().mean() > 0.99


def test_published_neurons_have_no_such_potential(tmp_path):
    ann = random_ann().float()
    write_raster(tmp_path / "raster.npz", OwnPath(ann, 1), convert(ann, PUBLISHED))
    assert [raster.potentials is None for raster in load_rasters(tmp_path / "raster.npz")] == [False, True]
