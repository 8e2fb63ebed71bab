"""The comparison of samplers: counted calls, resumption, what it refuses."""

import json

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig
from ann2snn.diffusion.samplers import SAMPLERS as REGISTRY
from ann2snn.metrics.features import Extracted
from ann2snn.metrics.frechet import FeatureStatistics, frechet_distance
from ann2snn.metrics.stats_file import write_stats
from benchmarks import samplers
from benchmarks.sampler_figure import styles
from tests.helpers import random_ann


class Pixels:
    """Mean and two pixels of an image as features: quick, and easy to compute again."""

    name, dim, distance_key, notes = "pixels", 3, "FD_pixels", ()

    def __call__(self, images):
        flat = images.flatten(1).float() / 255
        return Extracted(torch.cat([flat.mean(1, keepdim=True), flat[:, :2]], 1))


class Shipped:
    """Stands for the training images."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.full((1, 4, 4), 80 * i, dtype=torch.uint8)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A command line without its choice of rows, on a network of a few neurons."""
    net = random_ann(seed=3, in_channels=1).float()
    config = {"unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    payload = {"kind": "ann", "format": 1, "ema_model": net.state_dict(), "step": 7, "config": config}
    checkpoint.save(tmp_path / "ckpt.pt", payload)
    write_stats(tmp_path / "ref.npz", [0.5, 0.5, 0.5], torch.eye(3).numpy(), 9, "pixels")
    monkeypatch.setattr(samplers, "make_extractor", lambda *args, **options: Pixels())
    monkeypatch.setattr(samplers, "load_dataset", lambda *args: Shipped())
    return [
        "--checkpoint",
        str(tmp_path / "ckpt.pt"),
        "--stats",
        str(tmp_path / "ref.npz"),
        "--out",
        str(tmp_path / "out"),
        "--images",
        "5",
        "--batch_size",
        "3",
    ]


def test_rows_are_scored_counted_and_drawn(job, tmp_path, capsys):
    assert samplers.main([*job, "--steps", "5", "--networks", "ann"]) == 0
    some = ["--samplers", "analytic_dpm,dpmpp3"]
    assert samplers.main([*job, "--steps", "5", "--stream_steps", "4", *some]) == 0
    path = tmp_path / "out" / "samplers.json"
    rows, printed = json.loads(path.read_text())["rows"], capsys.readouterr().out
    # Every sampler here asks the network once a step, gDDIM's final denoising included.
    found = [(row["network"], row["nfe"]) for row in rows]
    assert found == [("ann", 5)] * len(samplers.SAMPLERS) + [("layer_sync", 5)] * 2 + [("stream", 4)] * 2
    assert all(row["equal"] == row["compared"] == 4 for row in rows if row["network"] == "layer_sync")
    assert "NFE 4" in printed and printed.count("4/4 equal") == 2
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in path.read_text()


@pytest.mark.slow
def test_rows_on_file_are_not_computed_again(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samplers, "draw", lambda *args: None)
    computed, measure = [], samplers.measure
    monkeypatch.setattr(samplers, "measure", lambda *args: computed.append(args[0].sample) or measure(*args))

    def steps_computed(*flags):
        computed.clear()
        assert samplers.main([*job, "--networks", "ann", "--samplers", "dpmpp2,gddim2", *flags]) == 0
        return [(sample.sampler, sample.steps) for sample in computed]

    assert steps_computed("--steps", "5") == [("dpmpp", 5), ("gddim", 5)]
    assert steps_computed("--steps", "5") == []
    capsys.readouterr()
    assert steps_computed("--steps", "4") == [("dpmpp", 4), ("gddim", 4)]
    assert "NFE 5" in capsys.readouterr().out  # of the first command
    assert steps_computed("--steps", "4", "--skip", "uniform") == [("dpmpp", 4)]  # gDDIM has a spacing of its own
    for flags in (("--seed", "1"), ("--images", "4"), ("--no_clip",)):
        assert len(steps_computed("--steps", "4", *flags)) == 2
    write_stats(tmp_path / "ref.npz", [0.4, 0.5, 0.5], torch.eye(3).numpy(), 9, "pixels", overwrite=True)
    assert len(steps_computed("--steps", "4")) == 2
    capsys.readouterr()
    assert steps_computed("--steps", "4") == []
    assert "NFE 5" not in capsys.readouterr().out  # on file, but scored against the other reference
    assert steps_computed("--steps", "4,5", "--batch_size", "2") == [("dpmpp", 5), ("gddim", 5)]


def test_a_score_is_the_frechet_distance_of_the_images_that_python_samples(job, tmp_path):
    from ann2snn import convert, sample
    from ann2snn.metrics.stats_file import read_stats

    assert samplers.main([*job, "--steps", "5", "--networks", "stream", "--samplers", "ddim_eta1"]) == 0
    row = json.loads((tmp_path / "out" / "samplers.json").read_text())["rows"][0]
    snn = convert(checkpoint.load(tmp_path / "ckpt.pt").net, schedule="stream")
    gathered = FeatureStatistics(3)
    gathered.update(Pixels()(sample(snn, 5, sampler="ddim", eta=1.0, steps=5, batch_size=2)).features)
    mu, sigma, _ = gathered.compute()
    stats = read_stats(tmp_path / "ref.npz")
    assert row["score"] == pytest.approx(frechet_distance(mu, sigma, stats.mu, stats.sigma), rel=1e-9)


def test_what_is_called_stochastic_draws_noise():
    for name, fields in samplers.SAMPLERS.items():
        sample = SampleConfig(**fields, steps=5)
        draws = REGISTRY[sample.sampler].draws_noise({"eta": sample.eta}) if sample.sampler in REGISTRY else sample.eta
        assert bool(draws) == (name in samplers.STOCHASTIC)
    looks = styles(list(samplers.SAMPLERS), samplers.STOCHASTIC)
    assert len({look["color"] for look in looks.values()}) == len(samplers.SAMPLERS)


@pytest.mark.parametrize(
    "flags, cause",
    [
        (["--steps", "5,x"], "--steps=5,x"),
        (["--steps", "21", "--samplers", "ddim_eta0"], "--sampler_steps=21"),
        (["--steps", "2", "--samplers", "gddim2"], "order"),
        (["--samplers", "euler"], "'euler'"),
        (["--networks", "ann,snn"], "'snn'"),
        (["--images", "1"], "--images=1"),
        (["--images", "many"], "many"),
        (["--stats", "nowhere.npz"], "nowhere.npz"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_line(job, flags, cause, capsys):
    assert samplers.main([*job, "--steps", "5", *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and cause in printed.err
    assert not printed.out


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', '{"rows": [{"settings": {}}]}', '{"rows": [[]]}'])
def test_a_foreign_file_is_left_alone(job, tmp_path, content, capsys):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "samplers.json"
    path.write_text(content)
    assert samplers.main([*job, "--steps", "5", "--networks", "ann", "--samplers", "ddim_eta0"]) == 2
    assert "samplers.json" in capsys.readouterr().err and path.read_text() == content
