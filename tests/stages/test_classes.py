"""A class-conditional network through the scripts: trained, converted, tuned, guided; and what is refused."""

import json

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.data import load_dataset
from ann2snn.distributed.world import ALONE, World
from ann2snn.errors import UserError
from ann2snn.training.trainer import Trainer
from tests.data.test_datasets import picture
from tests.helpers import assert_equal
from tests.scripts import NETWORK, SAMPLING, check, script, train_flags

CLASSES = ["--class_cond", "--class_dropout=0.3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four steps with a grid on the way, and the same in two goes."""
    folder = tmp_path_factory.mktemp("classes")
    check(
        script(
            "ANN_train.py", *train_flags(folder / "whole", 4, *CLASSES, *SAMPLING, "--sample_step=4", "--guidance=1")
        )
    )
    for steps in (2, 4):
        check(script("ANN_train.py", *train_flags(folder / "parts", steps, *CLASSES)))
    return folder


def refused(name: str, *flags: str) -> str:
    done = script(name, *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_training_goes_on_to_the_last_bit_and_keeps_what_it_knows(trained):
    whole, parts = (checkpoint.load(trained / name / "ckpt.pt") for name in ("whole", "parts"))
    for name, value in whole.net.state_dict().items():
        assert_equal(parts.net.state_dict()[name], value)
    assert whole.net.num_classes == 10 and whole.net.class_names[9] == "Ankle boot"
    assert "--class_cond\n" in (trained / "whole/flagfile.txt").read_text()
    assert (trained / "whole/sample/4.png").exists()


def test_a_training_goes_on_as_it_began_only(trained, tmp_path):
    flags = train_flags(trained / "parts", 6)
    assert "num_classes=10, now num_classes=0 (--class_cond)" in refused("ANN_train.py", *flags)
    assert "class_dropout=0.3, now class_dropout=0.1" in refused("ANN_train.py", *flags, "--class_cond")
    source = checkpoint.load(trained / "parts/ckpt.pt").raw["config"]["train"]["data_dir"]
    data = load_dataset("fashion_mnist_10k", "", 8)
    assert source == data.fingerprint(labels=True) != data.fingerprint()


@pytest.mark.slow
def test_conversion_tuning_and_sampling(trained, tmp_path):
    logdir, model = tmp_path / "run", f"--eval_model_path={trained / 'whole/ckpt.pt'}"
    flags = [f"--logdir={logdir}", *NETWORK, *SAMPLING]
    out = check(
        script("SNN_conversion.py", "--eval", *flags, model, "--guidance=2", "--gap_images=1", "--gen_images=0")
    )
    assert "layer_sync equals its quantized ANN exactly" in out
    assert json.loads((logdir / "cost.json").read_text())["calls_per_image"] == 6  # 3 calls of two branches
    tuning = [
        "--fine_tune",
        "--ft_steps=1",
        "--ft_batch_size=2",
        "--gap_images=0",
        "--ft_inputs=sampler",
        "--guidance=1",
    ]
    check(script("SNN_ft.py", *flags, model, *tuning, "--sample_step=0", "--carry"))
    made = ["--sample_only", "--num_images=10", "--carry", "--guidance=2", "--class_label=Dress"]
    check(script("evaluate.py", *flags, *made))
    [folder] = [path for path in (logdir / "generated").iterdir() if path.is_dir()]
    assert "_class_label3_guidance2.0_" in folder.name
    options = json.loads((folder / "settings.json").read_text())["sampler_options"]
    assert options == {"carry": True, "guidance": 2.0, "class_label": 3}
    said = refused("evaluate.py", *flags, *made[:-1], f"--images_dir={folder}")
    assert "class_label=3, now class_label=default (--class_label)" in said
    said = refused("evaluate.py", *flags, *made, f"--images_dir={folder}", "--guidance=1")
    assert "guidance=2.0, now guidance=1.0 (--guidance)" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance=-1"], "--guidance=-1.0: use 0"),
        (["--guidance=nan"], "--guidance=nan: must be a finite number"),
        (["--class_label=10"], "--class_label=10: use 0 to 9, or none"),
        (["--class_label=Hat"], "--class_label=Hat: no class has this name; use one of T-shirt/top, Trouser"),
        (["--class_label=none", "--guidance=1"], "guides towards a class"),
    ],
)
def test_labels_and_weights_that_make_no_sense(trained, tmp_path, flags, words):
    model = f"--eval_model_path={trained / 'whole/ckpt.pt'}"
    assert words in refused("evaluate.py", "--sample_only", model, f"--logdir={tmp_path}", *SAMPLING, *flags)
    assert not list(tmp_path.iterdir())


def test_what_knows_no_classes_is_asked_for_none(tmp_path):
    shipped = ["--eval_model_path=fashion-mnist-32-4bit", f"--logdir={tmp_path}", "--sample_only"]
    assert "--guidance=1.0: the network knows no classes" in refused("evaluate.py", *shipped, "--guidance=1")
    assert "knows no classes" in refused("evaluate.py", *shipped, "--class_label=1")
    for i in range(3):
        picture(tmp_path / f"data/{i}.png", seed=i)
    data = ["--dataset_type=folder", f"--data_dir={tmp_path / 'data'}"]
    training = train_flags(tmp_path / "run", 2)
    assert "folder has no classes" in refused("ANN_train.py", *training, "--class_cond", *data)
    assert "only with --class_cond" in refused("ANN_train.py", *training, "--class_dropout=0.2")
    assert "--init_from" not in refused("SNN_train.py", *training, "--bit=32", "--arch=sddpm", "--class_cond")
    stats = ["--make_stats", f"--fid_cache={tmp_path / 's.npz'}", "--extractor=lite0", "--num_images=20"]
    assert "folder has no classes" in refused("evaluate.py", *stats, *data, "--img_size=8", "--class_label=0")
    assert "use 0 to 9" in refused("evaluate.py", *stats, *NETWORK[:2], "--class_label=10")


def trainer(num_classes: int, dropout: float = 0.1, world: World = ALONE) -> Trainer:
    shape = {"in_channels": 1, "image_size": 4, "ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "norm_groups": 4}
    config = UNetConfig(**shape, bits=2, num_classes=num_classes)
    train = TrainConfig(batch_size=64, class_dropout=dropout, seed=5)
    return Trainer(config, DiffusionConfig(), train, world)


def test_a_step_draws_what_it_drew_before_and_keeps_classes_back_by_seed_and_step():
    plain, told = trainer(0), trainer(3)
    images = torch.zeros(64, 1, 4, 4)
    for before, now in zip(plain.draw(images), told.draw(images), strict=True):
        assert_equal(now, before)
    labels = torch.arange(64) % 3
    first = told.kept_back(labels)
    assert_equal(told.kept_back(labels), first)
    assert 0 < int((first == 3).sum()) < 20 and bool(((first == labels) | (first == 3)).all())
    told.step += 1
    assert not torch.equal(told.kept_back(labels), first)
    assert_equal(trainer(3, 0.0).kept_back(labels), labels)
    assert trainer(3, 1.0).kept_back(labels).unique().tolist() == [3]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "x"])
def test_impossible_shares_are_refused(share):
    with pytest.raises(UserError, match="--class_dropout"):
        TrainConfig(class_dropout=share)
