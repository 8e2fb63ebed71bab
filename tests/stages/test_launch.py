"""`--nproc` starts the processes itself, and one that dies, or its launcher, takes the others along."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ann2snn.distributed import launch, world
from ann2snn.distributed.launch import _exit_code
from ann2snn.nets.unet import UNet
from tests.processes import ended, fork, kill
from tests.scripts import ROOT, SAMPLING, _free_port, check, script, train_flags
from tests.stages.test_bad_input import refused
from tests.stages.test_parallel import CLOSE, distance, state


def start(*command: str) -> subprocess.Popen:
    """A script in processes of its own, in a session of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, text=True, start_new_session=True, **pipes)


def workers(launcher: int) -> list[int]:
    """Process ids of the launcher's children."""
    return [int(pid) for pid in open(f"/proc/{launcher}/task/{launcher}/children").read().split()]


def wait_for(condition, seconds: float = 240.0):
    """Whatever `condition` returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def is_alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().split(") ")[-1][0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    check(script("ANN_train.py", *train_flags(logdir, 8)))
    return logdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that was started, too: scripts that are forked try fewer clips."""
    logdir = tmp_path_factory.mktemp("alone")
    running = start("ANN_train.py", *train_flags(logdir, 8))
    _, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    return logdir


@pytest.mark.slow  # of worlds that are not started by --nproc, test_parallel says the same
def test_nproc_trains_like_one_process(alone, tmp_path):
    running = start("ANN_train.py", *train_flags(tmp_path, 8), "--nproc=2")
    _, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    assert distance(state(tmp_path / "ckpt.pt"), state(alone / "ckpt.pt")) < CLOSE
    assert "train:" not in err, "bars are for terminals"


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("launcher by SIGTERM", marks=pytest.mark.slow),  # as SIGUSR1 in test_signals
        pytest.param("launcher by SIGINT", marks=pytest.mark.slow),
        "worker",
        pytest.param("launcher by SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_an_end_of_one_process_is_the_end_of_all_and_the_run_continues(tmp_path, victim):
    flags = train_flags(tmp_path, 100_000, "--save_step=4", "--lr_decay=none")
    running = start("ANN_train.py", *flags, "--nproc=2")
    try:
        wait_for(lambda: (tmp_path / "ckpt.pt").exists() or running.poll() is not None)
    except AssertionError:
        os.killpg(running.pid, signal.SIGKILL)
        raise
    children = workers(running.pid)
    assert len(children) == 2
    if victim == "worker":
        os.kill(children[1], signal.SIGKILL)
        expected, words = 1, "a worker was killed (SIGKILL)"
    else:
        number = signal.Signals[victim.split()[-1]]
        os.kill(running.pid, number)
        expected, words = {"SIGTERM": (143, ""), "SIGINT": (130, ""), "SIGKILL": (-9, "")}[number.name]
    out, err = running.communicate(timeout=240)
    assert running.returncode == expected, err
    assert words in err and "Traceback" not in err
    wait_for(lambda: not any(map(is_alive, children)), 30)
    if expected in (143, 130):
        assert "stopped at step" in out
    step = torch.load(tmp_path / "ckpt.pt", weights_only=True)["step"]
    again = check(script("ANN_train.py", *train_flags(tmp_path, step + 2)))
    assert f"at step {step}" in again


@pytest.mark.slow
def test_workers_that_are_starting_do_not_outlive_their_launcher(tmp_path):
    """They look for it over the network then, for minutes, where no signal reaches them."""
    running = start("ANN_train.py", *train_flags(tmp_path, 4), "--nproc=2")
    children = wait_for(lambda: len(found := workers(running.pid)) == 2 and found)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate(timeout=240)
    wait_for(lambda: not any(map(is_alive, children)), 60)
    assert not (tmp_path / "ckpt.pt").exists()


def test_a_signal_reaches_a_process_that_waits_for_what_the_main_one_says(monkeypatch):
    """As when SIGTERM has ended the main process already, and the store is the launcher's, which goes on."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    reading, writing = os.pipe()

    def process(rank: int) -> None:
        os.environ["RANK"] = str(rank)
        with launch.stoppable():
            joined = world.join("cpu")
            if rank == 0:
                time.sleep(50)
            os.write(writing, b"!")
            joined.from_main("")

    silent, waiting = (fork(lambda rank=rank: process(rank)) for rank in range(2))
    try:
        assert os.read(reading, 1) == b"!"
        time.sleep(0.3)
        os.kill(waiting, signal.SIGTERM)
        started = time.monotonic()
        assert ended(waiting) == 1, "Stopped, which a forked test process reports with 1"
        assert time.monotonic() - started < 20
    finally:
        kill(silent)


@pytest.mark.parametrize(
    ("codes", "run"), [([-9, 143], 1), ([143, -9], 1), ([143, 143], 143), ([1, 2], 2), ([-15, 143], 143), ([1, 1], 1)]
)
def test_the_run_ends_with_the_code_of_what_ended_it(codes, run, capsys):
    """A worker that is killed makes the launcher stop the others, which then end as by SIGTERM."""
    assert _exit_code(codes) == run
    assert ("a worker was killed (SIGKILL)" in capsys.readouterr().err) == (-9 in codes)


@pytest.mark.slow
def test_bad_input_is_one_line_and_code_2_with_many_processes_as_with_one(tmp_path):
    running = start("ANN_train.py", *train_flags(tmp_path, 2), "--nproc=2", "--batch_size=7")
    out, err = running.communicate(timeout=240)
    assert running.returncode == 2 and err.count("\n") == 1 and "--batch_size=7" in err, err


def test_parallel_without_gpus_says_so_and_runs(tmp_path):
    out = check(script("ANN_train.py", *train_flags(tmp_path, 2), "--parallel"))
    assert "--parallel" in out and "--nproc" in out
    refused(script("ANN_train.py", *train_flags(tmp_path, 2), "--nproc=-1"), "--nproc=-1")


@pytest.mark.slow
def test_torchrun_starts_the_same_world(alone, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "ANN_train.py"]
    running = start(*command, *train_flags(tmp_path, 8))
    out, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    assert distance(state(tmp_path / "ckpt.pt"), state(alone / "ckpt.pt")) < CLOSE


def signal_at_call(call: int, number: int):
    """For `before`: the script signals itself in this call of the network, which is within a sampling run."""

    def before() -> None:
        original, calls = UNet.forward, itertools.count(1)

        def forward(*args):
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return original(*args)

        UNet.forward = forward

    return before


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", ["SNN_conversion.py", "evaluate.py"])
def test_signals_end_the_other_stages_with_the_usual_code_and_lose_nothing(whole, tmp_path, number, stage):
    flags = [f"--logdir={tmp_path}", "--num_images=400", "--batch_size=4", "--gen_images=200", *SAMPLING]
    (tmp_path / "ckpt.pt").write_bytes((whole / "ckpt.pt").read_bytes())
    action = ["--eval"] if stage == "SNN_conversion.py" else ["--sample_only"]
    done = script(stage, *flags, *action, before=signal_at_call(20, number))
    assert done.returncode == 128 + number, done.stderr
    assert "run the same command to continue" in done.stdout and "Traceback" not in done.stderr
    if stage == "evaluate.py":
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("generated/*/*.png")}
        assert 0 < len(kept) < 400
        flags[1] = f"--num_images={len(kept) + 3}"
        assert f"{len(kept) + 3} images" in check(script(stage, *flags, *action))
        assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "none is generated twice"
