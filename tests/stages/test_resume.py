"""Interrupted and resumed equals uninterrupted, to the last bit on a CPU."""

import json
import os
import shutil
import signal

import pytest
import torch

from ann2snn.run.lines import read_log
from ann2snn.stages import finetune, train
from tests.scripts import SAMPLING, check, script, train_flags


def losses(logdir):
    lines = [json.loads(line) for line in (logdir / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"]) for line in lines]


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(first, second):
    assert losses(first) == losses(second)
    a, b = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (first, second))
    for key in a:
        assert equal(a[key], b[key]), key


def signal_in_training(step: int, number: int):
    """Send this process a signal when the training step `step` begins."""

    def before():
        original = train.Trainer.train_step

        def train_step(self, *batch):
            if self.step == step:
                os.kill(os.getpid(), number)
            return original(self, *batch)

        train.Trainer.train_step = train_step

    return before


def test_training_killed_between_checkpoints_continues_as_if_nothing_had_happened(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    check(script("ANN_train.py", *train_flags(whole, 8)))
    # At step 6 the log is ahead of the checkpoint of step 4.
    done = script("ANN_train.py", *train_flags(killed, 8), before=signal_in_training(6, signal.SIGKILL))
    assert done.returncode == -signal.SIGKILL
    assert torch.load(killed / "ckpt.pt", weights_only=True)["step"] == 4
    assert "resuming" in check(script("ANN_train.py", *train_flags(killed, 8)))
    assert_same_run(whole, killed)


def test_the_grid_and_the_score_of_the_step_in_which_a_run_ended_are_made_up_for(tmp_path):
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    extra = ["--sample_step=4", "--sample_size=2", "--eval_step=4", *SAMPLING]

    def scored() -> None:
        from ann2snn.cli import build

        build.scorer = lambda sample, world: (lambda net: {"FD": float(next(net.parameters()).sum())}, {"images": 2})

    def unwritten() -> None:
        scored()
        train.save_grid = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    def unscored() -> None:
        scored()
        train.score_both = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    check(script("ANN_train.py", *train_flags(whole, 4, *extra), before=scored))
    assert script("ANN_train.py", *train_flags(ended, 4, *extra), before=unscored).returncode == -signal.SIGKILL
    assert (ended / "ckpt.pt").exists() and not (ended / "snn_eval.txt").exists()
    picture = ended / "sample" / "4.png"
    picture.unlink()
    check(script("ANN_train.py", *train_flags(ended, 4, *extra), before=scored))
    for name in ("sample/4.png", "snn_eval.txt"):
        assert (ended / name).read_bytes() == (whole / name).read_bytes(), name
    check(script("ANN_train.py", *train_flags(ended, 4, *extra), before=unwritten))
    assert len((ended / "snn_eval.txt").read_text().splitlines()) == 1, "and once"


def test_signals_end_training_with_a_checkpoint_and_the_usual_exit_code(tmp_path):
    whole = tmp_path / "whole"
    flags = ["--save_step=0", "--lr_decay=cosine"]
    check(script("ANN_train.py", *train_flags(whole, 8), *flags))
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stopped = tmp_path / str(code)
        done = script("ANN_train.py", *train_flags(stopped, 8), *flags, before=signal_in_training(5, number))
        assert done.returncode == code
        assert torch.load(stopped / "ckpt.pt", weights_only=True)["step"] == 6  # the step in hand is finished
        check(script("ANN_train.py", *train_flags(stopped, 8), *flags))
        assert_same_run(whole, stopped)


def test_finished_run_is_left_alone(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    before = (tmp_path / "ckpt.pt").read_bytes()
    assert "nothing left to train" in check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    assert (tmp_path / "ckpt.pt").read_bytes() == before


def test_other_settings_do_not_continue_a_run(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    before = (tmp_path / "ckpt.pt").read_bytes()
    changes = {"--lr=0.5": "lr=0.001", "--seed=1": "seed=0", "--bit=3": "bits=2", "--noresume": "exists"}
    for flag, words in changes.items():
        done = script("ANN_train.py", *train_flags(tmp_path, 4), flag)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("tuning", [["--ft_steps=2"], ["--ft_steps=0", "--ft_calibrate", "--ft_network_steps=2"]])
def test_fine_tuning_killed_in_the_third_block_resumes_there(tmp_path, tuning):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    flags = ["--fine_tune", f"--logdir={tmp_path}", *tuning, "--ft_batch_size=4"]
    flags += ["--sample_step=0", "--gap_images=0", "--num_threads=1"]
    check(script("SNN_ft.py", *flags))
    state = tmp_path / "SNN_2bit_ft" / "ft_state.pt"
    whole, log = torch.load(state, weights_only=True), read_log(state.with_name("log.jsonl"))
    assert sum("prediction_gap" in line for line in log) == len(whole["reports"])
    shutil.rmtree(state.parent)

    def before():
        original, calls = finetune.tune_block, []

        def tune_block(*args):
            calls.append(args)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        finetune.tune_block = tune_block

    assert script("SNN_ft.py", *flags, before=before).returncode == -signal.SIGKILL
    assert len(torch.load(state, weights_only=True)["reports"]) == 2
    assert "2 blocks done" in check(script("SNN_ft.py", *flags))
    resumed = torch.load(state, weights_only=True)
    assert equal(whole["ema_model"], resumed["ema_model"]) and whole["gaps"] == resumed["gaps"]
    assert read_log(state.with_name("log.jsonl")) == log
    check(script("SNN_ft.py", *flags))  # a finished run started again
    assert read_log(state.with_name("log.jsonl")) == log
