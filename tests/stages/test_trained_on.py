"""What is made of a network remembers the images that it was trained on, and which of its weights it has."""

import pytest
import torch
from PIL import Image

import ann2snn
from ann2snn.checkpoints import checkpoint, folders
from ann2snn.checkpoints.payload import payload_of
from ann2snn.config import SpikingConfig
from ann2snn.data import load_dataset
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.stages.finetune_run import FineTuneConfig, Run
from tests.scripts import SAMPLING, check, script


@pytest.fixture
def source(tmp_path):
    """A training's network on a data set that is not the default one."""
    net = ann2snn.build_unet(bit=2, in_channels=1, image_size=8, ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4)
    payload = payload_of(net)
    payload["config"]["train"] = {"dataset_type": "fashion_mnist_10k", "power_ema": (0.1,), "data_dir": "2 images"}
    checkpoint.save(tmp_path / "ckpt.pt", payload)
    loaded = checkpoint.load(tmp_path / "ckpt.pt")
    loaded.weights = "power0.1"
    return loaded


def finetuned(source, folder):
    config = FineTuneConfig(1, 1e-3, 2, 0, 0, True, 0)
    return Run(folder, source.net, SpikingConfig("stream"), config, source, ALONE).payload()


def test_networks_made_of_it_are_compared_with_its_images(source, tmp_path):
    snn = ann2snn.convert(source.net)
    made = {"converted": checkpoint.payload_from(snn, source), "finetuned": finetuned(source, tmp_path)}
    for name, payload in made.items():
        checkpoint.save(tmp_path / f"{name}.pt", payload)
        folders.write(tmp_path / name, payload)
        for path in (tmp_path / f"{name}.pt", tmp_path / name):
            loaded = checkpoint.load(path)
            assert (loaded.trained_on, loaded.weights) == ("fashion_mnist_10k", "power0.1")


def test_the_conversion_of_the_script_and_its_export_do(source, tmp_path):
    flags = ["--eval", f"--logdir={tmp_path}", "--gap_images=0", "--gen_images=0", "--num_threads=1", *SAMPLING]
    check(script("SNN_conversion.py", *flags, f"--export={tmp_path / 'out'}"))
    assert checkpoint.load(tmp_path / "converted_snn.pt").trained_on == "fashion_mnist_10k"
    assert checkpoint.load(tmp_path / "out").trained_on == "fashion_mnist_10k"


@pytest.mark.parametrize("weights", ["../up", 3, "a" * 40])
def test_what_a_file_calls_its_weights_becomes_part_of_a_name_and_is_checked(source, tmp_path, weights):
    torch.save(payload_of(source.net) | {"weights": weights}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="its weights are no plain word"):
        checkpoint.load(tmp_path / "bad.pt")


def test_other_images_of_its_data_set_are_told(source, tmp_path):
    for name, side in (("seen", 8), ("others", 9)):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("L", (side, 8), 200).save(tmp_path / name / f"{index}.png")
    seen = load_dataset("folder", str(tmp_path / "seen"), 8, channels=1).fingerprint()
    payload = payload_of(source.net)
    payload["config"]["train"] = {"dataset_type": "folder", "data_dir": seen}
    checkpoint.save(tmp_path / "folder.pt", payload)
    flags = [f"--logdir={tmp_path}", f"--eval_model_path={tmp_path / 'folder.pt'}", "--num_threads=1"]
    flags += ["--invert", "--sampler_steps=1", "--drawn_images=1"]
    note = f"note: {tmp_path / 'folder.pt'} was trained on other images of --dataset_type=folder: see --data_dir"
    for name, told in (("seen", False), ("others", True)):
        assert (note in check(script("evaluate.py", *flags, f"--data_dir={tmp_path / name}"))) == told
