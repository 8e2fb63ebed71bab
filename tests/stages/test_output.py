"""Nobody reads what a script prints, or nobody can: the work goes on all the same."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import torch

from ann2snn.output import unbreakable_output
from tests.disks import fill, small_disk
from tests.scripts import ROOT, SAMPLING, four_blocks, script, train_flags
from tests.stages.test_faults import at_step


def onto(descriptor: int) -> None:
    """Standard output and error go there from now on."""
    for number in (1, 2):
        os.dup2(descriptor, number)


def full() -> None:
    onto(os.open("/dev/full", os.O_WRONLY))


def unread() -> None:
    """As behind `2>&1 | head`, once that has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    onto(writing)


def closed() -> None:
    for number in (1, 2):
        os.close(number)


def step_of(folder) -> int:
    return torch.load(folder / "ckpt.pt", weights_only=True)["step"]


@pytest.mark.parametrize("dead", [full, unread, closed])
def test_training_and_sampling_work_without_anybody_to_tell(tmp_path, dead):
    grids = ["--sample_step=2", "--sample_size=2", *SAMPLING]
    assert script("ANN_train.py", *train_flags(tmp_path, 4, *grids), before=dead).returncode == 0
    assert step_of(tmp_path) == 4
    images = ["--sample_only", f"--logdir={tmp_path}", "--num_images=3", *SAMPLING]
    assert script("evaluate.py", *images, before=dead).returncode == 0
    assert len(list(tmp_path.glob("generated/*/*.png"))) == 3


def test_fine_tuning_and_scores_work_without_anybody_to_tell(finished_run, tmp_path):
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    logdir = f"--logdir={tmp_path}"
    tuning = ["--fine_tune", logdir, "--ft_steps=1", "--ft_batch_size=4", "--sample_step=0", "--gap_images=0"]

    def few_and_full() -> None:
        four_blocks()
        full()

    assert script("SNN_ft.py", *tuning, before=few_and_full).returncode == 0
    assert (tmp_path / "SNN_2bit_ft" / "finetune.json").exists()
    lite = ["--extractor=lite0", "--lite0_size=32", f"--fid_cache={finished_run[0]}/stats.npz"]
    assert script("evaluate.py", "--eval", logdir, "--num_images=12", *SAMPLING, *lite, before=unread).returncode == 0
    assert len(json.loads((tmp_path / "snn_eval.txt").read_text())) > 5


def test_output_that_dies_in_the_middle(tmp_path):
    dies = script("ANN_train.py", *train_flags(tmp_path, 4), before=at_step(2, lambda _: full()))
    assert dies.returncode == 0 and step_of(tmp_path) == 4


@pytest.mark.slow
def test_streams_that_python_does_not_open(tmp_path):
    command = [sys.executable, "ANN_train.py", *train_flags(tmp_path / "none", 2)]
    ran = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=ROOT, check=False)
    assert ran.returncode == 0 and step_of(tmp_path / "none") == 2
    for line in (tmp_path / "none" / "log.jsonl").read_text().splitlines():
        json.loads(line)  # nothing that was printed got into a file that took the number of a closed stream


def test_a_log_on_the_disk_that_fills_up_does_not_keep_the_state_from_being_rescued(tmp_path, monkeypatch):
    """nohup's: `> run/log 2>&1`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with small_disk("8m") as disk:

        def log_to_disk() -> None:
            onto(os.open(disk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
            at_step(6, lambda _: fill(disk))()

        assert script("ANN_train.py", *train_flags(disk / "run", 8), before=log_to_disk).returncode == 2
    (rescued,) = tmp_path.glob("ann2snn-rescue-*.pt")
    assert torch.load(rescued, weights_only=True)["step"] == 8


def test_a_message_in_letters_that_the_terminal_does_not_have():
    def plain() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="ascii", errors="strict")

    done = script("ANN_train.py", "--train", "--logdir=/dev/null/→", "--bit=ü→", before=plain)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "\\u2192" in done.stderr


def test_a_reader_that_is_slow_gets_everything_also_from_a_non_blocking_pipe():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "x" * 99 + "\n"
    if (child := os.fork()) == 0:
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w", buffering=1)
        with unbreakable_output():
            print(text * 10_000, end="")
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="ascii") as pipe:
        assert pipe.read() == text * 10_000
    os.waitpid(child, 0)


def test_what_is_no_file_is_left_as_it_is(capsys):
    with unbreakable_output(), contextlib.redirect_stderr(sys.stdout):
        print("seen")
    assert capsys.readouterr().out == "seen\n"
