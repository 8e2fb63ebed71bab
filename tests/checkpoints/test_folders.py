"""Networks as folders: what is saved comes back bit for bit, and anything else is refused in one line."""

import copy
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ann2snn
from ann2snn.checkpoints import folders
from ann2snn.checkpoints.folders import CONFIG, WEIGHTS
from ann2snn.errors import UserError
from tests.helpers import random_ann
from tests.processes import ended, fork
from tests.scripts import SAMPLING, check, script
from tests.stages.test_bad_input import refused

STREAM = {"schedule": "stream", "settle_steps": 2, "burst": 3}


@pytest.fixture(scope="module")
def ann():
    return random_ann(bits=2).float()


@pytest.mark.parametrize("name", ["net.pt", "net"])
@pytest.mark.parametrize("how", [None, {}, STREAM])
def test_networks_come_back_as_they_were(ann, tmp_path, name, how):
    net = ann if how is None else ann2snn.convert(ann, **how)
    ann2snn.save(net, tmp_path / name, step=7)
    again = ann2snn.load(tmp_path / name)
    assert type(again) is type(net) and again.config == net.config and again.diffusion == net.diffusion
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    if how is not None:
        assert again.spiking == net.spiking
    images = [ann2snn.sample(one, 2, steps=3, progress=False) for one in (net, again)]
    assert torch.equal(*images)


def test_fine_tuned_thresholds_and_charges_come_back(ann, tmp_path):
    from ann2snn.finetune import expand_neurons

    snn = ann2snn.convert(ann, **STREAM)
    expand_neurons(snn, ("thresholds", "charges"), "channel")
    ann2snn.save(snn, tmp_path / "tuned")
    assert ann2snn.load(tmp_path / "tuned").state_dict().keys() == snn.state_dict().keys()


def test_half_precision_halves_the_file_and_rounds_the_weights(ann, tmp_path):
    for dtype in ("float32", "float16"):
        ann2snn.save(ann, tmp_path / dtype, dtype=dtype)
    size = {path.name: (path / WEIGHTS).stat().st_size for path in tmp_path.iterdir()}
    assert size["float16"] < 0.6 * size["float32"]
    again = ann2snn.load(tmp_path / "float16").state_dict()
    for name, value in ann.state_dict().items():
        assert torch.equal(again[name], value.half().float() if value.is_floating_point() else value)


def test_nothing_is_overwritten_and_foreign_networks_are_named(ann, tmp_path):
    ann2snn.save(ann, tmp_path / "net.pt")
    ann2snn.save(ann, tmp_path / "net")
    before = (tmp_path / "net" / WEIGHTS).read_bytes()
    for path in (tmp_path / "net.pt", tmp_path / "net"):
        with pytest.raises(UserError, match="nothing is overwritten"):
            ann2snn.save(ann, path)
    assert (tmp_path / "net" / WEIGHTS).read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    links = tmp_path / "links"
    (links / "empty").mkdir(parents=True)
    for target in ("nowhere", "empty"):
        (links / "link").symlink_to(target)
        with pytest.raises(UserError, match="is a link"):  # found at once, not when it is to be replaced
            folders.check_free(links / "link")
        (links / "link").unlink()
    os.mkfifo(links / "pipe")
    with pytest.raises(UserError, match="nothing is overwritten"):
        folders.check_free(links / "pipe")
    shutil.rmtree(links)
    with pytest.raises(UserError, match="a Linear cannot be saved"):
        ann2snn.save(torch.nn.Linear(2, 2), tmp_path / "linear")
    with pytest.raises(UserError, match="dtype=int8"):
        ann2snn.save(ann, tmp_path / "other", dtype="int8")
    overflowing = random_ann(bits=2).float()
    with torch.no_grad():
        next(overflowing.parameters()).fill_(1e6)
    with pytest.raises(UserError, match="half precision cannot hold"):
        ann2snn.save(overflowing, tmp_path / "other", dtype="float16")
    assert not (tmp_path / "other").exists() and len(list(tmp_path.iterdir())) == 2


def unsealed(folder):
    """As folders were before they had seals, and as other programs leave them."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)


@pytest.mark.parametrize("name", ["net.pt", "net"])
def test_what_could_not_be_read_again_is_not_written(ann, tmp_path, name):
    told = [("step", -1), ("step", "3"), ("step", True), ("stage", "Two Words"), ("source", "../x"), ("identity", "x")]
    told += [(taken, "x") for taken in ("kind", "hash", "ann2snn", "net_model", "assumed")]
    told += [("note", "x" * 2**20)] if name == "net" else []
    for key, value in told:
        with pytest.raises(UserError, match=CONFIG if key == "note" else key):
            ann2snn.save(ann, tmp_path / name, **{key: value})
    for net in (ann, ann2snn.convert(ann)):
        diverged = copy.deepcopy(net)
        next(diverged.parameters()).data.view(-1)[-1] = np.nan
        with pytest.raises(UserError, match="not finite"):
            ann2snn.save(diverged, tmp_path / name)
    assert not list(tmp_path.iterdir())
    ann2snn.save(ann, tmp_path / name, step=np.int64(7), note=np.float32(0.5))
    ann2snn.load(tmp_path / name)


def change(name: str, value: object):
    def spoil(folder):
        unsealed(folder)
        about = json.loads((folder / CONFIG).read_text())
        about[name] = value
        (folder / CONFIG).write_text(json.dumps(about))

    return spoil


def cut_weights(folder):
    os.truncate(folder / WEIGHTS, 200)


def drop_a_tensor(folder):
    state = load_file(folder / WEIGHTS)
    state.pop("head.weight")
    save_file(state, folder / WEIGHTS)


def add_a_tensor(folder):
    save_file(load_file(folder / WEIGHTS) | {"strange": torch.zeros(1)}, folder / WEIGHTS)


def spoil_a_number(folder):
    state = load_file(folder / WEIGHTS)
    state["head.weight"][0] = float("nan")
    save_file(state, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "no config.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors"),
        (lambda folder: (folder / CONFIG).write_text("{"), "unreadable"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "no table"),
        (
            lambda folder: (folder / CONFIG).write_text('{"_class_name": "VQModel"}'),
            "VQModel of diffusers; only UNet2DModel",
        ),
        (change("kind", "../x"), "plain word"),
        (change("config", {"arch": "unet"}), "configuration"),
        (change("config", 3), "configuration"),
        (change("ann2snn", 2), "not of a network of this program"),
        (change("step", -1), "step"),
        (cut_weights, "damaged"),
        (drop_a_tensor, "lacks head.weight"),
        (add_a_tensor, "unknown entry strange"),
        (spoil_a_number, "not finite"),
    ],
)
def test_anything_else_is_refused_in_one_line(ann, tmp_path, spoil, words):
    ann2snn.save(ann, tmp_path / "net")
    spoil(tmp_path / "net")
    with pytest.raises(UserError, match=words) as caught:
        ann2snn.load(tmp_path / "net")
    assert "\n" not in str(caught.value)


def test_settings_that_the_weights_were_not_written_with_are_refused(ann, tmp_path):
    """A U-Net that predicts v has weights of the same names and shapes as one that predicts eps."""
    ann2snn.save(ann, tmp_path / "net", step=7)
    text = (tmp_path / "net" / CONFIG).read_text()
    assert '"mean_type": "epsilon"' in text and '"bits": 2' in text
    for was, now in (
        ('"mean_type": "epsilon"', '"mean_type": "v"'),
        ('"bits": 2', '"bits": 3'),
        ('"step": 7', '"step": 8'),
    ):
        (tmp_path / "net" / CONFIG).write_text(text.replace(was, now))
        with pytest.raises(UserError, match="config.json is not the one that model.safetensors was written with"):
            ann2snn.load(tmp_path / "net")
    (tmp_path / "net" / CONFIG).write_text(json.dumps(json.loads(text), sort_keys=True))  # laid out otherwise, the same
    ann2snn.load(tmp_path / "net")
    unsealed(tmp_path / "net")
    (tmp_path / "net" / CONFIG).write_text(text.replace('"step": 7', '"step": 8'))
    ann2snn.load(tmp_path / "net")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bit_that_flips_in_the_weights_is_noticed(ann, tmp_path, dtype):
    ann2snn.save(ann, tmp_path / "net", dtype=dtype)
    content = bytearray((tmp_path / "net" / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (tmp_path / "net" / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="does not match its hash: the file is damaged"):
        ann2snn.load(tmp_path / "net")


def test_what_a_killed_save_left_is_cleared_away_by_the_next(ann, tmp_path):
    def write_half():
        folders.content_hash = lambda value: "sha256:"
        folders._safetensors = lambda: os.kill(os.getpid(), signal.SIGKILL)
        ann2snn.save(ann, tmp_path / "net")

    assert ended(fork(write_half)) == -signal.SIGKILL
    [left] = os.listdir(tmp_path)
    assert left.startswith(".net.") and (tmp_path / left).is_dir()
    ann2snn.save(ann, tmp_path / "other")
    assert os.listdir(tmp_path) == ["other"]


def test_a_network_is_saved_to_the_empty_folder_that_one_stands_in(ann, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ann2snn.save(ann, ".")
    ann2snn.load(tmp_path / "here")


def test_scripts_take_a_folder_for_a_checkpoint(finished_run, tmp_path):
    ann2snn.save(ann2snn.load(finished_run[0] / "ckpt.pt"), tmp_path / "net", step=6)
    flags = ["--eval", "--sample_only", "--num_images=2", *SAMPLING]
    for path, logdir in ((finished_run[0] / "ckpt.pt", "a"), (tmp_path / "net", "b")):
        check(script("evaluate.py", *flags, f"--eval_model_path={path}", f"--logdir={tmp_path / logdir}"))
    pictures = [sorted((tmp_path / name).glob("generated/*/*.png")) for name in "ab"]
    assert pictures[0][0].read_bytes() == pictures[1][0].read_bytes()
    (tmp_path / "net" / WEIGHTS).unlink()
    done = script("evaluate.py", *flags, f"--eval_model_path={tmp_path}/net", f"--logdir={tmp_path}/c")
    refused(done, "no model.safetensors")


def test_a_folder_elsewhere_is_converted_into_a_logdir(finished_run, tmp_path):
    ann2snn.save(ann2snn.load(finished_run[0] / "ckpt.pt"), tmp_path / "net")
    flags = ["--eval", f"--eval_model_path={tmp_path}/net", "--gen_images=0", "--gap_images=0"]
    check(script("SNN_conversion.py", *flags, f"--logdir={tmp_path}/run"))
    ours, theirs = (
        ann2snn.load(folder / "converted_snn.pt").state_dict() for folder in (tmp_path / "run", finished_run[0])
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    done = script(
        "SNN_conversion.py", f"--logdir={tmp_path}/b", "--eval", f"--eval_model_path={tmp_path}/run/converted_snn.pt"
    )
    refused(done, "spiking network already")
    done = script("SNN_conversion.py", f"--logdir={tmp_path}/b", "--eval", "--eval_model_path=no-such-network")
    refused(done, "no checkpoint at no-such-network")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_is_readable_by_whom_the_umask_lets_read(ann, tmp_path):
    before = os.umask(0o027)
    try:
        ann2snn.save(ann, tmp_path / "net", step=7)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "net").iterdir()} == {0o640}
