"""A world that its environment describes badly, or that cannot be met, is refused in one line, and no signal waits."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ann2snn import signals
from ann2snn.distributed import launch
from ann2snn.distributed.meeting import check_environment
from tests.disks import may_unshare
from tests.scripts import ROOT, _free_port, check, script, train_flags
from tests.stages.test_bad_input import refused

SOUND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


def run(tmp_path, **variables):
    """A training with these environment variables; None: without it."""

    def before() -> None:
        for name, value in (SOUND | variables).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return script("ANN_train.py", *train_flags(tmp_path / "run", 2), before=before)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "one"}, ["RANK=one", "0 to 1"]),
        ({"RANK": "2"}, ["RANK=2"]),
        ({"RANK": "-1"}, ["RANK=-1"]),
        ({"RANK": ""}, ["RANK="]),
        ({"RANK": "²"}, ["RANK=²"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE=0"]),
        ({"WORLD_SIZE": "2.0"}, ["WORLD_SIZE=2.0"]),
        ({"LOCAL_RANK": "x"}, ["LOCAL_RANK=x"]),
        ({"MASTER_PORT": "http"}, ["MASTER_PORT=http"]),
        ({"MASTER_PORT": "65536"}, ["MASTER_PORT=65536"]),
        ({"MASTER_ADDR": "nowhere.invalid"}, ["MASTER_ADDR=nowhere.invalid", "no such host"]),
        ({"MASTER_ADDR": ""}, ["MASTER_ADDR="]),
        ({"MASTER_ADDR": "a" * 70}, ["MASTER_ADDR=aaa"]),
        ({"MASTER_ADDR": None}, ["MASTER_ADDR", "not set"]),
        ({"MASTER_PORT": None}, ["MASTER_PORT", "not set"]),
    ],
)
def test_an_environment_that_describes_no_world(tmp_path, variables, words):
    refused(run(tmp_path, **variables), *words)
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_in_use(tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run(tmp_path, MASTER_PORT=port), f"MASTER_PORT={port}", "choose another")


def test_variables_of_one_process_or_of_other_programs_do_no_harm(tmp_path, monkeypatch):
    for name in SOUND:
        monkeypatch.delenv(name, raising=False)
    check_environment()
    monkeypatch.setenv("WORLD_SIZE", "4")  # without RANK it is another program's
    check_environment()
    check(run(tmp_path, WORLD_SIZE="1", MASTER_PORT=str(_free_port())))


def test_a_signal_reaches_a_process_that_looks_for_the_main_one_in_vain(tmp_path):
    port = str(_free_port())

    started = time.monotonic()

    def before() -> None:
        os.environ.update(SOUND | {"RANK": "1", "MASTER_PORT": port})
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    done = script("ANN_train.py", *train_flags(tmp_path / "run", 2), before=before)
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - started < 20


def test_processes_of_one_machine_do_not_ask_for_its_name(monkeypatch):
    from torch.distributed.launcher import api

    for name in ("ANN2SNN_LAUNCHER", "OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "")
    asked = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, *_: asked.append(config) or (lambda *argv: None))
    with signals.stoppable():
        assert launch.start_workers(2) == 0
    assert (asked[0].local_addr, asked[0].rdzv_endpoint) == ("127.0.0.1", "127.0.0.1:0")


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="no name spaces here")
def test_processes_of_one_machine_meet_where_its_name_does_not_resolve(tmp_path):
    command = [sys.executable, "ANN_train.py", *train_flags(tmp_path, 2), "--nproc=2"]
    shell = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh", *command]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(shell, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "ckpt.pt").exists()
