"""The documentation's measurements, on networks of a few neurons."""

import json

import pytest
import torch
from quant.functional import uniform_levels

from ann2snn.checkpoints import checkpoint
from ann2snn.config import ImageSize, SpikingConfig
from ann2snn.convert import convert, measure_gap
from ann2snn.data.datasets import ImageDataset, ImageSource
from benchmarks import neuron_figure, settling
from tests.helpers import random_ann, random_batch


def saved(net, path):
    config = {"unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    checkpoint.save(path, {"kind": "ann", "format": 1, "ema_model": net.state_dict(), "step": 7, "config": config})
    return path


def test_one_run_gives_the_gaps_of_all_shorter_runs():
    ann = random_ann(seed=3)
    x, t = random_batch(ann)
    gaps, _ = settling.settling_gaps(ann, x, t, 5)
    for steps, gap in enumerate(gaps):
        alone = measure_gap(ann, convert(ann), x, t, SpikingConfig("stream", settle_steps=steps)).prediction.error
        assert gap == pytest.approx(alone, rel=1e-9, abs=1e-14)


def test_settled_after_agrees_with_automatic_settling():
    ann = random_ann(seed=4)
    x, _ = random_batch(ann)
    curve = settling.measure_curve(ann, "trained", x, 10, 30)
    snn = convert(ann, SpikingConfig("stream", settle_steps="auto"))
    with torch.no_grad():
        snn(x, torch.full((len(x),), 10))
    assert curve.settled_after == snn.last_settle_steps
    assert curve.gaps[0] > 1e-3 > settling.EXACT > curve.gaps[-1]
    assert curve.layer_sync < settling.EXACT < curve.published
    assert curve.extra_spikes >= 0


def test_still_firing_is_reported_as_unsettled():
    ann = random_ann(seed=4)
    x, _ = random_batch(ann)
    assert settling.measure_curve(ann, "trained", x, 10, 1).settled_after is None


def test_other_bits_keep_the_weights_and_random_twins_do_not():
    ann = random_ann().float()
    other = settling.at_bits(ann, 4)
    assert other.config.bits == 4
    assert all(torch.equal(a.double(), b) for a, b in zip(ann.parameters(), other.parameters(), strict=True))
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    twin = settling.randomized(ann, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())
    assert not torch.equal(twin.head.weight, ann.head.weight)


def test_the_commands_write_figures_and_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settling, "TIMES", (5, 15))
    monkeypatch.setattr(settling, "BITS", (2, 3))
    source = saved(random_ann(), tmp_path / "ckpt.pt")
    out = tmp_path / "figures" / "settling.png"
    settling.main(["--checkpoint", str(source), "--out", str(out), "--images", "1", "--settle_steps", "3"])
    printed = capsys.readouterr().out
    assert "silent after" in printed and f"torch: {torch.__version__}" in printed
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert len(numbers["curves"]) == 8
    assert len(numbers["curves"][0]["gaps"]) == 4
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    picture = tmp_path / "neuron.png"
    neuron_figure.main(["--out", str(picture), "--gaps", str(out.with_suffix(".json"))])
    for image in (out, picture):
        assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size < 150_000


def test_the_small_network_is_trained_once(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
    few = ImageDataset(
        ImageSource("fashion_mnist_10k", "train", images.__getitem__, 64, 1, ImageSize(16, 16), flip=False)
    )
    monkeypatch.setattr(settling, "load_dataset", lambda *args: few)
    path = settling.train_small_network(tmp_path / "new", 1)
    written = path.read_bytes()
    assert settling.train_small_network(tmp_path / "new", 1).read_bytes() == written


@pytest.mark.parametrize("spike_steps, bits", [(3, 2), (15, 4)])
def test_drawn_spike_counts_are_the_quantizers(spike_steps, bits):
    currents = torch.arange(-45, 122, dtype=torch.float64) / 64  # exact sums, ties included
    counts = neuron_figure.spike_counts(currents, spike_steps)
    assert torch.equal(counts, uniform_levels(currents, 1.0, bits))


def test_membrane_path_conserves_charge():
    times, values, spikes = neuron_figure.membrane_path(0.6, 3)
    assert times[-1] == 3 and spikes == [1, 3]
    assert values[-1] == pytest.approx(0.5 + 3 * 0.6 - len(spikes))
