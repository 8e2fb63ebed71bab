"""What goes wrong around a run, provoked for real: it stops with one line, or goes on, and loses nothing."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from ann2snn.data import load_dataset
from ann2snn.stages import train
from tests.disks import fill, read_only, small_disk
from tests.processes import child_inside
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.test_bad_input import refused
from tests.stages.test_resume import assert_same_run


def at_step(step: int, action):
    """Do `action(trainer)` when the training step `step` begins."""

    def before():
        original = train.Trainer.train_step

        def train_step(self, *batch):
            if self.step == step:
                action(self)
            return original(self, *batch)

        train.Trainer.train_step = train_step

    return before


def spoil(trainer) -> None:
    """What a diverging run does to its weights."""
    with torch.no_grad():
        next(trainer.net.parameters()).fill_(float("inf"))


@pytest.mark.parametrize("log_step", ["1", "1000"])
def test_a_loss_that_is_no_number_stops_before_anything_is_saved(tmp_path, log_step):
    """Save at 4, NaN in step 6 (counted from 1), due to be saved at 8: the file of step 4 stays, and continues."""
    flags = [*train_flags(tmp_path, 8), f"--log_step={log_step}"]
    done = script("ANN_train.py", *flags, before=at_step(5, spoil))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the loss is not finite at step 6") and "--seed=0 at step 5" in last
    stored = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert stored["step"] == 4 and all(v.isfinite().all() for v in stored["net_model"].values())
    assert "at step 4" in check(script("ANN_train.py", *flags))


@pytest.mark.parametrize("stage", ["train", "convert", "finetune", "evaluate"])
def test_a_second_run_on_the_same_logdir_is_refused_and_the_first_goes_on(finished_run, tmp_path, stage):
    logdir, commands = finished_run[0], {
        "train": ("ANN_train.py", train_flags(tmp_path, 4), tmp_path),
        "convert": ("SNN_conversion.py", ["--eval", *SAMPLING], finished_run[0]),
        "finetune": ("SNN_ft.py", ["--fine_tune", "--ft_steps=2", *SAMPLING], finished_run[0] / "SNN_2bit_ft"),
        "evaluate": ("evaluate.py", ["--sample_only", f"--images_dir={tmp_path}", *SAMPLING], tmp_path),
    }  # fmt: skip
    name, flags, owned = commands[stage]
    lock = {"evaluate": "generate"}.get(stage, stage)
    from ann2snn.files.lock import run_lock

    flags = [*flags, *([] if stage == "train" else [f"--logdir={logdir}"])]
    before = {path: path.stat().st_mtime_ns for path in owned.rglob("*.pt")}
    with child_inside(lambda: run_lock(owned, lock)) as holder:
        refused(script(name, *flags, before=impatient), "in use by another run", str(holder))
    assert before == {path: path.stat().st_mtime_ns for path in owned.rglob("*.pt")}


def impatient() -> None:
    """Do not wait for the other run."""
    from ann2snn.files import lock
    from ann2snn.stages import common

    common.run_lock = lambda folder, name: lock.run_lock(folder, name, patience=0.1)


def test_the_lock_of_a_killed_run_does_not_hinder(tmp_path):
    kill = at_step(2, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert script("ANN_train.py", *train_flags(tmp_path, 4), before=kill).returncode == -signal.SIGKILL
    assert (tmp_path / ".train.lock").exists()
    check(script("ANN_train.py", *train_flags(tmp_path, 4)))


def test_a_damaged_newest_checkpoint_gives_way_to_the_previous_loudly_and_exactly(tmp_path):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    check(script("ANN_train.py", *train_flags(whole, 12)))
    check(script("ANN_train.py", *train_flags(hurt, 8)))
    path = hurt / "ckpt.pt"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for index in range(middle, middle + 300):  # more than the padding between two tensors
        content[index] ^= 1
    path.write_bytes(content)
    done = script("ANN_train.py", *train_flags(hurt, 12))
    assert "resuming" in check(done) and "at step 4" in done.stdout
    assert "WARNING" in done.stderr and "ckpt.damaged.pt" in done.stderr
    assert (hurt / "ckpt.damaged.pt").read_bytes() == content
    assert_same_run(whole, hurt)


def test_a_full_disk_stops_training_and_the_rescued_state_continues_exactly(tmp_path, monkeypatch):
    whole, elsewhere = tmp_path / "whole", tmp_path / "tmp"
    elsewhere.mkdir()
    check(script("ANN_train.py", *train_flags(whole, 8)))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with small_disk("8m") as disk:
        logdir = disk / "run"
        done = script("ANN_train.py", *train_flags(logdir, 8), before=at_step(6, lambda _: fill(disk)))
        assert done.returncode == 2 and "Traceback" not in done.stderr
        error = done.stderr.strip().splitlines()[-1]
        (rescued,) = elsewhere.glob("ann2snn-rescue-*.pt")
        assert error.startswith("error: cannot write") and str(rescued) in error and "No space left" in error
        assert torch.load(logdir / "ckpt.pt", weights_only=True)["step"] == 4
        (disk / "filler").unlink()
        shutil.copy(rescued, logdir / "ckpt.pt")
        out = check(script("ANN_train.py", *train_flags(logdir, 8)))
        assert "at step 8" in out
        stored = [torch.load(f / "ckpt.pt", weights_only=True)["ema_model"] for f in (whole, logdir)]
        assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])


def test_a_disk_that_turns_read_only_stops_training_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with small_disk("8m") as disk:
        logdir = disk / "run"
        with read_only(disk):
            refused(script("ANN_train.py", *train_flags(logdir, 4)), "cannot write", "Read-only file system")
        check(script("ANN_train.py", *train_flags(logdir, 4)))
        with read_only(disk):
            refused(script("ANN_train.py", *train_flags(logdir, 8)), "Read-only file system")
            refused(script("evaluate.py", "--sample_only", f"--logdir={logdir}", *SAMPLING), "Read-only file system")


def test_a_vanished_logdir_costs_no_training(tmp_path, monkeypatch):
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    logdir = tmp_path / "run"
    done = script("ANN_train.py", *train_flags(logdir, 8), before=at_step(6, lambda _: shutil.rmtree(logdir)))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (rescued,) = elsewhere.glob("ann2snn-rescue-*.pt")
    assert str(rescued) in done.stderr
    logdir.mkdir()
    shutil.copy(rescued, logdir / "ckpt.pt")
    assert "at step 8" in check(script("ANN_train.py", *train_flags(logdir, 8)))


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory) -> Path:
    folder, images = tmp_path_factory.mktemp("images"), load_dataset("fashion_mnist_10k", "", 8)
    for index in range(40):
        Image.fromarray(images[index][0].numpy()).save(folder / f"{index}.png")
    return folder


def lazily(action=lambda _: None, step: int = -1):
    """Train from files that are read anew at every step, as those of a large data set are."""

    def before():
        from ann2snn.data import datasets

        datasets.MEMORY_BUDGET = 0
        at_step(step, action)()

    return before


def kill_loaders(trainer) -> None:
    """kill -9 every process that loads images."""
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert mine, "no process loads images"
    for child in mine:
        os.kill(int(child), signal.SIGKILL)


def test_loading_processes_that_die_are_replaced_and_change_nothing(tmp_path, folder_of_images):
    """Two processes are at most four batches ahead: killed in the fourth of 12 steps, they owe at least four."""
    flags = ["--dataset_type=folder", f"--data_dir={folder_of_images}", "--channels=1", "--num_workers=2"]
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    check(script("ANN_train.py", *train_flags(whole, 12), *flags, before=lazily()))
    done = script("ANN_train.py", *train_flags(hurt, 12), *flags, before=lazily(kill_loaders, 3))
    check(done)
    assert "WARNING" in done.stderr and "died" in done.stderr
    assert_same_run(whole, hurt)


def test_scores_of_two_runs_of_the_same_evaluation_are_equal(finished_run, tmp_path):
    """Killed between the last image and the score: the rerun scores what is there."""
    lite = ["--extractor=lite0", "--lite0_size=32", f"--fid_cache={finished_run[0]}/stats.npz", "--num_images=12"]
    flags = ["--eval", f"--eval_model_path={finished_run[0]}/ckpt.pt", *SAMPLING, *lite]

    def before():
        from ann2snn.stages import evaluate

        evaluate.score_and_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    first, second = tmp_path / "first", tmp_path / "second"
    check(script("evaluate.py", *flags, f"--logdir={first}"))
    killed = script("evaluate.py", *flags, f"--logdir={second}", before=before)
    assert killed.returncode == -signal.SIGKILL
    check(script("evaluate.py", *flags, f"--logdir={second}"))
    lines = [json.loads((folder / "snn_eval.txt").read_text()) for folder in (first, second)]
    for line in lines:
        line.pop("date")
    assert lines[0] == lines[1]
