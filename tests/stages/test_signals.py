"""Closing terminals, schedulers' warnings and limits of processor time end a run as Ctrl-C does: nothing is lost."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from ann2snn.distributed.launch import _exit_code
from tests.scripts import SAMPLING, check, script, train_flags
from tests.stages.test_faults import at_step, folder_of_images, lazily  # noqa: F401 - a fixture
from tests.stages.test_launch import is_alive, signal_at_call, start, wait_for, workers
from tests.stages.test_resume import assert_same_run, signal_in_training

OTHERS = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    logdir = tmp_path_factory.mktemp("whole")
    check(script("ANN_train.py", *train_flags(logdir, 8)))
    return logdir


def step_of(logdir: Path) -> int:
    return torch.load(logdir / "ckpt.pt", weights_only=True)["step"]


@pytest.mark.parametrize(
    "name", ["SIGHUP", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS if name != "SIGHUP")]
)
def test_training_finishes_its_step_saves_and_says_so(whole, tmp_path, name):
    number = signal.Signals[name]
    done = script("ANN_train.py", *train_flags(tmp_path, 8), "--save_step=0", before=signal_in_training(5, number))
    assert done.returncode == 128 + number and "stopped at step 6" in done.stdout
    assert step_of(tmp_path) == 6
    check(script("ANN_train.py", *train_flags(tmp_path, 8)))
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize(
    "names", [["SIGHUP"] * 3, ["SIGXCPU"] * 3, ["SIGUSR1", "SIGTERM"], ["SIGUSR1", "SIGHUP", "SIGUSR2", "SIGINT"]]
)
def test_signals_that_repeat_or_announce_another_do_not_cut_the_step_short(tmp_path, names):
    """SIGXCPU comes every second, a shell and the kernel may both send SIGHUP, SIGUSR1 announces SIGTERM."""
    send = at_step(5, lambda _: [os.kill(os.getpid(), signal.Signals[name]) for name in names])
    done = script("ANN_train.py", *train_flags(tmp_path, 8), "--save_step=0", before=send)
    assert done.returncode == 128 + signal.Signals[names[-1]] and step_of(tmp_path) == 6


def test_a_second_signal_of_the_impatient_does(tmp_path):
    send = at_step(5, lambda _: [os.kill(os.getpid(), signal.SIGQUIT) for _ in range(2)])
    done = script("ANN_train.py", *train_flags(tmp_path, 8), before=send)
    assert done.returncode == 128 + signal.SIGQUIT and step_of(tmp_path) == 4


def test_what_nohup_ignores_stays_ignored(tmp_path):
    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_in_training(2, signal.SIGHUP)()

    check(script("ANN_train.py", *train_flags(tmp_path, 4), before=before))


def test_processes_that_load_images_leave_signals_to_the_run(tmp_path, folder_of_images):  # noqa: F811
    def signal_all(_) -> None:
        mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in mine:
            for name in (*OTHERS, "SIGTERM", "SIGINT"):
                os.kill(int(child), signal.Signals[name])

    flags = ["--dataset_type=folder", f"--data_dir={folder_of_images}", "--channels=1", "--num_workers=2"]
    # 12 steps: after the fourth, batches are wanted that nobody has loaded yet
    done = script("ANN_train.py", *train_flags(tmp_path, 12), *flags, before=lazily(signal_all, 3))
    check(done)
    assert "died" not in done.stderr


@pytest.mark.parametrize("stage", ["SNN_conversion.py", "evaluate.py", "SNN_ft.py"])
def test_the_other_stages_stop_with_the_signals_code(whole, tmp_path, stage):
    (tmp_path / "ckpt.pt").write_bytes((whole / "ckpt.pt").read_bytes())
    flags = [f"--logdir={tmp_path}", "--num_images=400", "--batch_size=4", "--gen_images=200", *SAMPLING]
    flags += {"evaluate.py": ["--sample_only"], "SNN_ft.py": ["--fine_tune", "--ft_batch_size=4"]}.get(
        stage, ["--eval"]
    )
    done = script(stage, *flags, before=signal_at_call(4, signal.SIGUSR1))
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert "run the same command to continue" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "all"])
def test_a_launcher_under_nohup_outlives_its_terminal_and_passes_the_schedulers_warning_on(tmp_path, whom):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a new process inherits
    try:
        running = start("ANN_train.py", *train_flags(tmp_path, 100_000), "--save_step=4", "--nproc=2")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: (tmp_path / "ckpt.pt").exists() or running.poll() is not None)
    children = workers(running.pid)
    assert len(children) == 2
    os.kill(running.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert running.poll() is None
    number = signal.SIGUSR1 if whom == "launcher" else signal.SIGTERM
    for pid in [running.pid] if whom == "launcher" else [*children, running.pid]:  # as Slurm does
        os.kill(pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number, err
    wait_for(lambda: not any(map(is_alive, children)), 30)
    assert f"stopped at step {step_of(tmp_path)}" in out and "Traceback" not in err


def test_the_runs_code_is_the_one_of_its_stopped_workers():
    assert _exit_code([128 + signal.SIGXCPU, 128 + signal.SIGXCPU]) == 128 + signal.SIGXCPU
    assert _exit_code([128 + signal.SIGUSR1, 2]) == 2 and _exit_code([1, 129]) == 129
