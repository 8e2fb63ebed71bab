import json
import math

import pytest
import torch
from torch import nn

from ann2snn import gap
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, measure_gap, relative_error
from ann2snn.convert.gap import PREDICTION, GapMeter
from ann2snn.quant import QuantReLU
from tests.helpers import random_ann, random_batch, spike_trains

STREAM = SpikingConfig("stream")
SETTLED = SpikingConfig("stream", settle_steps="auto")


@pytest.fixture(scope="module")
def pair():
    ann = random_ann(bits=3)
    return ann, convert(ann)


def test_relative_error_laws():
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    assert relative_error(a, a) == 0
    assert relative_error(a, b) == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)
    assert relative_error(3 * a, 3 * b) == pytest.approx(relative_error(a, b), rel=1e-6)
    assert relative_error(1.1 * b.double(), b.double()) == pytest.approx(0.1)
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error(torch.tensor([3.0, 4.0]), torch.zeros(2)) == 5
    assert math.isnan(relative_error(torch.tensor([float("nan")]), torch.ones(1)))
    # Differences far below float32's resolution of the sum are seen.
    assert relative_error(torch.tensor([1e4, 1e-4]), torch.tensor([1e4, 0.0])) == pytest.approx(1e-8, rel=1e-3)


class Blocks(nn.Module):
    """Its list of blocks has the name of a method of ours, and a block is written into by what follows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = nn.Linear(4, 4), nn.ModuleList([QuantReLU(3, 1.0), nn.Linear(4, 4), QuantReLU(3, 0.5)])

    def forward(self, x, wipe=True):
        h = self.stem(x)
        for block in self.blocks:
            before, h = h, block(h)
            if wipe:
                before.zero_()
        return h


def test_blocks_of_others_are_measured_as_they_answered():
    net = Blocks().double().eval()
    x = torch.randn(32, 4, dtype=torch.float64)
    reports = [gap(net, convert(net, schedule="stream"), x, wipe=wipe).rows() for wipe in (True, False)]
    assert [row.block for row in reports[0]] == ["stem", "blocks.0", "blocks.1", "blocks.2", PREDICTION]
    assert [row.error for row in reports[0]] == [row.error for row in reports[1]]


def test_layer_sync_has_no_gap_in_any_block(pair):
    ann, snn = pair
    report = measure_gap(ann, snn, *random_batch(ann, 3))
    assert [row.block for row in report.rows()] == [name for name, _ in ann.blocks()] + [PREDICTION]
    assert all(row.error < 1e-12 for row in report.rows())
    assert report.label == "layer_sync" and report.settle_steps == 0


def test_stream_has_one_and_settling_closes_it(pair):
    ann, snn = pair
    batch = random_batch(ann, 3)
    rows = {row.block: row for row in measure_gap(ann, snn, *batch, STREAM).rows()}
    assert rows["head"].error < 1e-12 and rows["time_embedding"].error < 1e-12
    assert all(rows[name].error > 1e-3 for name in ("middleblocks.1", "tail", PREDICTION))
    assert rows["tail"].error == pytest.approx(rows[PREDICTION].error)
    settled = measure_gap(ann, snn, *batch, SETTLED)
    assert all(row.error < 1e-12 for row in settled.rows())
    assert settled.settle_steps > 0 and settled.label == "stream +auto"
    assert snn.spiking == SpikingConfig()  # measuring under another schedule leaves the network as it was


@pytest.mark.parametrize("config", [SpikingConfig(), STREAM, SETTLED])
def test_batches_measure_the_same_as_one(pair, config):
    ann, snn = pair
    x, t = random_batch(ann, 5)
    whole = measure_gap(ann, snn, x, t, config, batch_size=5)
    parts = measure_gap(ann, snn, x, t, config, batch_size=2)
    for one, many in zip(whole.rows(), parts.rows(), strict=True):
        assert many.error == pytest.approx(one.error, rel=1e-9, abs=1e-13)
        assert many.firing_rate == pytest.approx(one.firing_rate, rel=1e-12, nan_ok=True)
        assert many.negative_share == pytest.approx(one.negative_share, rel=1e-12, nan_ok=True)
    assert parts.spikes_per_image == pytest.approx(whole.spikes_per_image, rel=1e-12)


@pytest.mark.parametrize("config", [SpikingConfig(), STREAM, SETTLED])
def test_errors_and_rates_equal_hand_counts(pair, config):
    ann, snn = pair
    x, t = random_batch(ann, 2)
    report = measure_gap(ann, snn, x, t, config)
    with snn.running_as(config), torch.no_grad():
        out, trains = spike_trains(snn, x, t)
        assert report.prediction.error == pytest.approx(relative_error(out, ann(x, t)), rel=1e-9, abs=1e-15)
    for row in report.blocks:
        layers = [events for name, events in trains.items() if name.startswith(row.block + ".")]
        if not layers:
            assert math.isnan(row.firing_rate) and math.isnan(row.negative_share)
            continue
        spikes = sum(float(events.abs().sum()) for events in layers)
        negative = sum(float((events < 0).sum()) for events in layers)
        sites = sum(events[0].numel() for events in layers) * 7  # a neuron could fire in each of 7 window steps
        assert row.firing_rate == pytest.approx(spikes / sites, rel=1e-12)
        assert row.negative_share == pytest.approx(negative / spikes, rel=1e-12)
    total = sum(float(events.abs().sum()) for events in trains.values())
    assert report.spikes_per_image == pytest.approx(total / 2)
    assert report.prediction.firing_rate == pytest.approx(
        total / (7 * sum(events[0].numel() for events in trains.values()))
    )
    assert any(row.negative_share > 0 for row in report.blocks) == (config.schedule == "stream")


def test_settling_costs_spikes_beyond_the_net_count(pair):
    ann, snn = pair
    batch = random_batch(ann, 3)
    exact = measure_gap(ann, snn, *batch)
    settled = measure_gap(ann, snn, *batch, SETTLED)
    net = settled.spikes_per_image * (1 - 2 * settled.prediction.negative_share)
    assert net == pytest.approx(exact.spikes_per_image)
    assert settled.spikes_per_image > exact.spikes_per_image


def test_a_report_is_plain_json(pair):
    ann, snn = pair
    report = measure_gap(ann, snn, *random_batch(ann), STREAM).to_dict()
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    assert again["blocks"][0] == {
        "block": "head",
        "error": pytest.approx(0, abs=1e-12),
        "firing_rate": None,
        "negative_share": None,
        "errors_at": pytest.approx([0] * len(again["times"]), abs=1e-12),
    }
    assert SpikingConfig(**again["spiking"]) == STREAM


def test_a_meter_without_a_batch_has_no_report(pair):
    with pytest.raises(ValueError, match="no batch"):
        GapMeter(*pair).report()
