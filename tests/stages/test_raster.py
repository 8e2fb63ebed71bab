"""The conversion stage's raster: layer_sync beside stream, settled wherever it may settle."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
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
    write_raster(tmp_path / "raster.npz", ann, convert(ann, asked), seed=0)
    layer_sync, stream = load_rasters(tmp_path / "raster.npz")
    assert layer_sync.spiking == SpikingConfig() and stream.spiking == shown
    assert 0 < stream.t < ann.config.diffusion_steps - 1  # halfway along the path
    if shown.settle_steps == "auto":
        assert torch.equal(stream.events.sum(2), layer_sync.events.sum(2))


def test_a_neuron_that_may_never_fall_silent_is_measured_without_settling():
    ann = random_ann()
    spiking = SpikingConfig("stream", if_neuron="reference")  # cumulative norm
    labels = [report.label for report in gap_reports(ann, convert(ann, spiking), spiking, images=1, seed=0)]
    assert labels == ["layer_sync", "stream"]
