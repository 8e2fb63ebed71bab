"""What is scored is what was generated: images by their names, an npz that holds them, pictures that stay apart."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig
from ann2snn.errors import UserError
from ann2snn.stages.claims import claim_folder
from ann2snn.stages.evaluate import picture_name, settings
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.test_bad_input import refused


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("run")
    check(script("ANN_train.py", *train_flags(logdir, 2)))
    convert = ["--eval", f"--logdir={logdir}", "--gen_images=4", "--gap_images=0", *SAMPLING]
    check(script("SNN_conversion.py", *convert))
    return logdir


def evaluate(logdir, images, *flags):
    common = [f"--logdir={logdir}", f"--images_dir={images}", "--device=cpu", "--num_threads=1", *SAMPLING]
    return script("evaluate.py", "--sample_only", "--num_images=3", *common, *flags)


def in_npz(images) -> np.ndarray:
    with np.load(images.with_name(f"{images.name}_3.npz")) as file:
        return file["arr_0"][..., 0]


def in_folder(images) -> np.ndarray:
    return np.stack([np.asarray(Image.open(images / f"{i:06}.png")) for i in range(3)])


def test_the_npz_holds_the_images_of_the_folder(logdir, tmp_path):
    images = tmp_path / "images"
    check(evaluate(logdir, images))
    first = in_npz(images)
    np.testing.assert_array_equal(first, in_folder(images))
    shutil.rmtree(images)
    check(evaluate(logdir, images, "--seed=7"))
    np.testing.assert_array_equal(in_npz(images), in_folder(images))
    assert (in_npz(images) != first).any()


def test_an_npz_of_an_earlier_run_with_another_count_is_named(logdir, tmp_path):
    images, older = tmp_path / "images", tmp_path / "images_2.npz"
    check(evaluate(logdir, images, "--num_images=2"))
    assert str(older) not in check(evaluate(logdir, images)), "the same images, but fewer"
    shutil.rmtree(images)
    assert f"{older} holds other images" in check(evaluate(logdir, images, "--seed=7"))


@pytest.mark.parametrize("kind", ["other arrays", "floats", "text", "link"])
def test_a_file_of_the_npzs_name_that_is_none_is_left_alone(logdir, tmp_path, kind):
    images, mine = tmp_path / "images", tmp_path / "images_3.npz"
    if kind == "link":
        mine.symlink_to("elsewhere.npz")
    elif kind == "text":
        mine.write_text("my notes")
    else:
        np.savez(mine, np.zeros((3, 8, 8, 1), np.uint8 if kind == "other arrays" else float), **{kind[:5]: np.ones(2)})
    before = os.readlink(mine) if kind == "link" else mine.read_bytes()
    refused(evaluate(logdir, images), "images_3.npz is in the way", "--images_dir")
    assert (os.readlink(mine) if kind == "link" else mine.read_bytes()) == before
    assert not list(images.glob("*.png"))


@pytest.mark.parametrize("name", ["0.png", "000001 (copy).png", "other/000000.png", "1000000.png", "000000.jpg"])
def test_foreign_images_are_refused_before_sampling(logdir, tmp_path, name):
    images = tmp_path / "images"
    (images / name).parent.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / name)
    refused(evaluate(logdir, images), name, "--images_dir")
    left = [path.name for path in images.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert left == [name.rpartition("/")[2]]


def test_settings_that_differ_are_named_by_their_flags(logdir, tmp_path):
    images = tmp_path / "images"
    check(evaluate(logdir, images))
    for flag in ("--seed=9", "--sampler_steps=4", "--skip_type=quadratic", "--eta=0.5", "--ddim_epsilon=network"):
        refused(evaluate(logdir, images, flag), f"({flag.partition('=')[0]})", "now", "--images_dir")


def test_images_are_read_by_their_names(logdir, tmp_path):
    """A longer run's images, and names that sort elsewhere, change nothing."""
    images = tmp_path / "images"
    check(evaluate(logdir, images, "--num_images=5"))
    (images / "notes.txt").write_text("not an image")
    check(evaluate(logdir, images))
    np.testing.assert_array_equal(in_npz(images), in_folder(images))


def test_pictures_of_different_networks_stay_apart(logdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(logdir, run)
    pictures = {path.name: path.read_bytes() for path in (run / "images").glob("*.png")}
    assert set(pictures) == {"ANN.png", "SNN_T3.png"}, "no other system's names"
    common = [f"--logdir={run}", "--sample_only", "--num_images=2", "--pic_or_not", *SAMPLING]
    common += ["--trajectory", "--trajectory_images=1"]
    for network in ("ckpt.pt", "converted_snn.pt"):
        for sampler in ([], ["--sampler_steps=2"]):
            check(script("evaluate.py", *common, f"--eval_model_path={run}/{network}", *sampler))
    assert all((run / "images" / name).read_bytes() == content for name, content in pictures.items())
    new = {path.name for path in (run / "images").glob("*.png")} - set(pictures)
    folders = {path.name for path in (run / "generated").iterdir() if path.is_dir()}
    assert len(folders) == 4
    assert new == {f"{name}.png" for name in folders} | {f"trajectory_{name}.png" for name in folders}


def test_images_by_statistics_of_other_images_are_not_mixed(logdir, tmp_path):
    source, sample = checkpoint.load(logdir / "ckpt.pt"), SampleConfig("analytic_dpm", 3)
    first, other = (settings(source, sample, torch.full((50,), value)) for value in (0.5, 0.6))
    claim_folder(tmp_path, first)
    claim_folder(tmp_path, dict(first))
    with pytest.raises(UserError, match="statistics=.*--analytic_images, --dataset_type"):
        claim_folder(tmp_path, other)
    (tmp_path / "settings.json").write_text(json.dumps(settings(source, sample)))  # of an earlier version
    claim_folder(tmp_path, first)


def test_pictures_of_folders_of_one_name_stay_apart(logdir, tmp_path):
    for place, steps in (("a", 2), ("b", 1)):
        trajectory = ["--trajectory", "--trajectory_images=1", "--pic_or_not"]
        check(evaluate(tmp_path, tmp_path / place / "made", f"--sampler_steps={steps}", *trajectory, *weights(logdir)))
    names = [path.name for path in (tmp_path / "images").glob("*.png")]
    assert len(names) == 4 and sum(name.startswith("trajectory_made_") for name in names) == 2


def test_pictures_of_other_given_images_stay_apart(logdir, tmp_path):
    common = [f"--logdir={tmp_path}", "--invert", "--dataset_type=folder", "--drawn_images=1", "--sampler_steps=1"]
    for grey in (50, 200):
        (tmp_path / f"{grey}").mkdir()
        Image.new("L", (8, 8), grey).save(tmp_path / f"{grey}/0.png")
        check(script("evaluate.py", *common, f"--data_dir={tmp_path}/{grey}", *weights(logdir)))
    assert len(list((tmp_path / "images").glob("invert_folder_*.png"))) == 2


@pytest.mark.parametrize("changed", [{"clip_x0": False}, {"var_type": "fixedsmall"}, {"step": 3}])
def test_a_drawn_pictures_name_differs_for_every_setting(changed):
    made_with = {"checkpoint": "0" * 16, "step": 2, "network": "trained", "weights": "ema", "spiking": None}
    made_with |= {"direct": None, "sampler": "ddim", "sampler_steps": 3, "sampler_options": {"carry": True}}
    made_with |= {"eta": 0.0, "seed": 0, "clip_x0": True, "var_type": "fixedlarge"}
    assert picture_name(made_with) == picture_name(dict(made_with))
    assert picture_name(made_with) != picture_name(made_with | changed)


def weights(logdir) -> list[str]:
    return [f"--eval_model_path={logdir}/converted_snn.pt"]


def test_what_an_interrupted_run_left_is_completed(logdir, tmp_path):
    images = tmp_path / "images"
    check(evaluate(logdir, images))
    whole = in_folder(images)
    (images / "000001.png").unlink()
    check(evaluate(logdir, images))
    np.testing.assert_array_equal(in_folder(images), whole)
    assert json.loads((images / "settings.json").read_text())["seed"] == 0
