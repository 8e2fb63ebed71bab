"""The Frechet autoencoder distance from the command line: beside other scores, alone, by two processes, trained."""

import argparse
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn import fad as command
from ann2snn.config import DATASET_TYPES
from ann2snn.data import datasets, load_dataset
from ann2snn.distributed.world import World
from ann2snn.errors import UserError
from ann2snn.metrics.fad import FadExtractor, read_fad_stats
from ann2snn.metrics.fad_encoder import WIDTHS, AutoEncoder, load_autoencoder, save_autoencoder
from ann2snn.metrics.features import Extracted
from ann2snn.metrics.metric import Reference
from ann2snn.metrics.stats_file import ReferenceStatistics
from ann2snn.metrics.weights import digest
from ann2snn.run.folder import RunFolder
from ann2snn.stages import evaluate
from ann2snn.stages.fad_train import train
from ann2snn.stages.generation import Scoring
from tests.metrics.test_fad import fad
from tests.scripts import check, processes, script, train_flags
from tests.stages.test_bad_input import refused

DATA = ["--dataset_type=fashion_mnist_10k", "--img_size=8", "--device=cpu", "--num_threads=1"]
ALONE = "--extractor=none"
COUNT = 280  # images: more than one batch of the published mode, and the second one small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """File of an encoder with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("fad") / "encoder.pth"
    save_autoencoder(path, AutoEncoder(1, 6))
    return path


@pytest.fixture(scope="module")
def stats(encoder):
    """mode → statistics of 300 training images, made by evaluate.py; without --fad_mode those of mode eval."""
    paths = {mode: encoder.with_name(f"{mode}.npz") for mode in ("eval", "published")}
    for mode, path in paths.items():
        chosen = [] if mode == "eval" else ["--fad_mode=published"]
        command = ["--make_stats", f"--fad_encoder={encoder}", f"--fad_stats={path}", "--num_images=300", *chosen]
        assert f"({mode} mode)" in check(script("evaluate.py", *command, *DATA))
    return paths


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("run")
    check(script("ANN_train.py", *train_flags(logdir, 1)))
    return logdir


def lines(logdir):
    return [json.loads(line) for line in (logdir / "snn_eval.txt").read_text().splitlines()]


def asked(encoder, stats, mode):
    return [f"--fad_encoder={encoder}", f"--fad_stats={stats[mode]}", f"--fad_mode={mode}"]


@pytest.mark.parametrize("mode", [pytest.param("published", marks=pytest.mark.slow), "eval"])
def test_generated_images_get_the_figure_whatever_the_number_of_processes(encoder, stats, logdir, tmp_path, mode):
    network = [f"--eval_model_path={logdir}/ckpt.pt", "--sampler=ddim", "--sampler_steps=1", f"--num_images={COUNT}"]
    found = []
    for count in (1, 2):
        folder = [f"--logdir={tmp_path}/{count}", f"--images_dir={logdir}/images{mode}", *DATA[2:]]
        done = processes(count, "evaluate.py", "--eval", *folder, *network, ALONE, *asked(encoder, stats, mode))
        assert f"FAD_{mode}" in check(done[0])
        [line] = lines(tmp_path / str(count))
        assert line["extractor"] == "none" and line["count"] == COUNT and line["processes"] == count
        assert line["fad_encoder"].endswith(f"({mode} mode)") and line["fad_reference"] == str(stats[mode])
        assert "FID" not in line and line["reference"] is None
        found.append(line[f"FAD_{mode}"])
    files = sorted((logdir / f"images{mode}").glob("*.png"), key=lambda path: int(path.stem))
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("L")) for path in files]))[:, None]
    extractor = FadExtractor(load_autoencoder(encoder), mode)
    expected = fad([pictures], extractor, read_fad_stats(stats[mode], extractor))
    assert found[0] == found[1] == expected[0] > 0 and expected[1] == COUNT


class Means:
    """A feature extractor of three features: mean, and mean of two corners."""

    name, dim, distance_key, notes = "means", 3, "FD_means", ()

    def __call__(self, images):
        x = images.float()[:, 0]
        return Extracted(torch.stack([x.mean((1, 2)), x[:, :4, :4].mean((1, 2)), x[:, 4:, 4:].mean((1, 2))], dim=1))


def test_real_images_are_scored_beside_another_extractor(encoder, stats, tmp_path, capsys):
    data = load_dataset("fashion_mnist_10k", "", 8, train=False).part(0, 20)
    extractor = FadExtractor(load_autoencoder(encoder), "eval")
    beside = Reference(extractor, read_fad_stats(stats["eval"], extractor), "some.npz")
    reference = ReferenceStatistics(np.zeros(3), np.eye(3), 9, "means")
    scoring = Scoring(("fd", "fad"), Means(), reference, "means.npz", fad=beside)
    evaluate.score_data(RunFolder(tmp_path), data, 20, scoring, World(torch.device("cpu")))
    [line] = lines(tmp_path)
    assert line["FAD_eval"] == fad([data.images], extractor, beside.statistics)[0]
    assert line["FD_means"] > 0 and line["reference"] == "means.npz" and line["reference_count"] == 9
    out = capsys.readouterr().out
    assert "FAD_eval" in out and "FD_means" in out and "against some.npz of 300 images" in out


def test_what_does_not_fit_is_refused_before_anything_is_computed(encoder, stats, tmp_path):
    given = [f"--fad_encoder={encoder}", f"--fad_stats={stats['published']}"]
    colour = tmp_path / "colour.pth"
    save_autoencoder(colour, AutoEncoder(3, 6))
    np.savez(tmp_path / "colour.npz", mu=np.zeros(6), sigma=np.eye(6))
    of_colour = [f"--fad_encoder={colour}", f"--fad_stats={tmp_path}/colour.npz", "--fad_mode=published"]
    for flags, words in (
        ([ALONE], ["--extractor=none", "--fad_encoder"]),
        ([ALONE, *given[:1]], ["add --fad_stats"]),
        ([ALONE, *given[1:]], ["add --fad_encoder"]),
        ([ALONE, *given], ["made in mode published", "--fad_mode=published"]),
        ([ALONE, *asked(encoder, stats, "eval"), "--precision_recall"], ["--precision_recall"]),
        ([ALONE, *given[1:], "--fad_encoder=no/file"], ["no/file"]),
        ([ALONE, *of_colour], ["takes 3 image channels, the images have 1"]),
        (["--make_stats", *given], ["exists"]),
        (["--make_stats", *of_colour[:1], f"--fad_stats={tmp_path}/new.npz"], ["takes 3 image channels"]),
        (["--make_stats", ALONE, f"--fid_cache={tmp_path}/new.npz"], ["--extractor=none"]),
    ):
        before = sorted(tmp_path.rglob("*.npz"))
        action = [] if "--make_stats" in flags else ["--score_data"]
        refused(script("evaluate.py", *action, f"--logdir={tmp_path}/run", *DATA, *flags), *words)
        assert sorted(tmp_path.rglob("*.npz")) == before and not (tmp_path / "run" / "snn_eval.txt").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of squares, in a folder with train and test."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part in ("train", "test"):
        (root / part).mkdir()
        for i in range(24):
            picture = np.zeros((32, 32), np.uint8)
            x, y = generator.integers(0, 20, 2)
            picture[y : y + 12, x : x + 12] = 255
            Image.fromarray(picture).save(root / part / f"{i:02}.png")
    return root


def trained(folder, out, *more):
    options = [
        "--dataset_type",
        "folder",
        "--channels",
        "1",
        "--batch_size",
        "8",
        "--latent",
        "5",
        "--num_threads",
        "1",
    ]
    return command.main(["--data_dir", str(folder), "--out", str(out), "--device", "cpu", *options, *more])


def test_training_writes_an_encoder_and_statistics_of_both_modes(folder, tmp_path, capsys):
    assert trained(folder, tmp_path / "a.pth", "--steps", "1") == 0
    assert trained(folder, tmp_path / "b.pth", "--steps", "30") == 0
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if "squared error" in line]
    assert errors[1] < 0.6 * errors[0]
    net = load_autoencoder(tmp_path / "b.pth")
    assert (net.channels, net.latent, net.side) == (1, 5, 32)
    held_out = load_dataset("folder", folder, 32, train=False, channels=1).images
    for mode in ("published", "eval"):
        extractor = FadExtractor(net, mode)
        reference = read_fad_stats(tmp_path / f"b_{mode}.npz", extractor)
        assert reference.count == 24 and fad([held_out], extractor, reference)[0] < 1e-6
        assert fad([255 - held_out], extractor, reference)[0] > 1
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert trained(folder, tmp_path / "b.pth", "--steps", "1") == 2 and "exists" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_seed_decides_and_nothing_else(folder, tmp_path, capsys):
    state = torch.random.get_rng_state()
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert trained(folder, tmp_path / f"{name}.pth", "--steps", "2", "--seed", seed) == 0
        torch.rand(3)
    torch.random.set_rng_state(state)
    a, b, c = (digest(load_autoencoder(tmp_path / f"{name}.pth").state_dict()) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "a.npz"], "must end in .pth"),
        (["--out", "a.pth", "--steps", "0"], "--steps=0"),
        (["--out", "a.pth", "--lr", "nan"], "--lr=nan"),
        (["--out", "a.pth", "--batch_size", "0"], "--batch_size=0"),
        (["--out", "a.pth", "--img_size", "28"], "--img_size"),
        (["--out", "a.pth", "--dataset_type", "folder", "--data_dir", "no/such"], "no/such"),
        (["--steps", "5"], "--out"),
        (["--out", "a.pth", "--stepps", "5"], "--stepps"),
    ],
)
def test_bad_arguments_are_refused_with_one_line(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
    assert not list(tmp_path.iterdir())


def test_diverged_training_is_told(folder):
    data = load_dataset("folder", folder, 32, channels=1)
    with pytest.raises(UserError, match="lower --lr"):
        train(data, 5, argparse.Namespace(steps=3, batch_size=8, lr=1e30, seed=0), torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fad", "--out", "a.npz"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ann2snn.fad", run_name="__main__")
    assert stop.value.code == 2 and "must end in .pth" in capsys.readouterr().err


def test_the_command_knows_the_names_that_data_and_encoders_have():
    """It says them before any of these are imported."""
    assert tuple(datasets._LOADERS) == DATASET_TYPES and tuple(WIDTHS) == command.SIDES
