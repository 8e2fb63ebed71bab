"""A process that dies takes those that wait for it along at once; one that is slow, or has left, takes nobody along."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from torch import distributed as dist

from ann2snn import signals
from ann2snn.distributed import lifelines, world
from ann2snn.generate import sampling
from tests.processes import child_inside, ended, fork, kill
from tests.scripts import SAMPLING, _free_port, processes, train_flags

SIZE = 3
SOON = 10.0  # seconds; a busy machine takes its time, a silent wait would last 30


@contextlib.contextmanager
def a_store(port: int) -> Iterator[None]:
    held = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    yield
    del held


class Group:
    """`SIZE` forked processes that join one world and then do `work(joined)`.

    Its store is another process's, as a launcher's is, so that it outlives them. It is not this one's: a forked process
    that collects its parent's store as garbage waits for a thread that it does not have.
    """

    def __init__(self, work: Callable[[world.World], None], before: Callable[[int], None] = lambda rank: None) -> None:
        port = _free_port()
        self.keeper = child_inside(lambda: a_store(port))
        self.keeper.__enter__()
        self.reading, self.writing = os.pipe()
        self.pids = [fork(lambda rank=rank: self._process(rank, port, work, before)) for rank in range(SIZE)]
        os.close(self.writing)

    def _process(self, rank: int, port: int, work, before) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        before(rank)
        with signals.stoppable():
            joined = world.join("cpu")
            os.write(self.writing, b"!")
            work(joined)

    def joined(self, count: int = SIZE) -> None:
        """Wait until `count` processes have joined."""
        for _ in range(count):
            assert os.read(self.reading, 1) == b"!", "a process did not join"

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        os.close(self.reading)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                kill(pid)
        self.keeper.__exit__(None, None, None)


def idle(joined: world.World) -> None:
    time.sleep(50)


def in_bar(joined: world.World) -> None:
    """Wait for the others' share."""
    with joined.progress(10, "", "", show=False):
        pass


def busy_in_bar(joined: world.World) -> None:
    """Never come to the end of one's own share."""
    with joined.progress(10**9, "", "", show=False) as bar:
        while True:
            bar.update(1)
            time.sleep(0.01)


def with_loader(joined: world.World) -> None:
    """Idle, with a child that lives on and holds what its parent had open."""
    fork(lambda: time.sleep(10))
    time.sleep(50)


WAITING = {
    "in_wait": (world.World.wait, idle),
    "for_text": (lambda joined: joined.from_main(""), idle),
    "in_bar": (in_bar, idle),
    "busy": (busy_in_bar, idle),
    "of_a_parent": (world.World.wait, with_loader),
}


@pytest.mark.parametrize(("name", "victim"), [*((name, 0) for name in WAITING), ("in_wait", 2), ("busy", 2)])
def test_who_waits_for_a_process_that_is_killed_ends_soon(name, victim):
    waiting, last = WAITING[name]

    def work(joined):
        if joined.rank == victim:
            last(joined)
        with pytest.raises(lifelines.LostProcessError, match="closed by peer"):
            waiting(joined)

    with Group(work) as group:
        group.joined()
        time.sleep(0.3)
        started = time.monotonic()
        kill(group.pids.pop(victim))
        assert [ended(pid) for pid in group.pids] == [0] * (SIZE - 1)
        assert time.monotonic() - started < SOON


def test_a_process_that_stands_still_is_not_lost():
    def work(joined):
        joined.wait()
        world.leave()  # who ends without it is lost to those that are still in the wait

    with Group(work) as group:
        group.joined()
        for pid in group.pids[:2]:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
        for pid in group.pids[:2]:
            os.kill(pid, signal.SIGCONT)
        assert [ended(pid) for pid in group.pids] == [0] * SIZE


def test_processes_that_have_left_are_not_lost_and_the_main_one_stays_for_the_others():
    def work(joined):
        time.sleep(3.0 * (joined.rank == 2))
        started = time.monotonic()
        world.leave()
        assert (time.monotonic() - started > 1.5) == (joined.rank == 0)

    with Group(work) as group:
        assert [ended(pid) for pid in group.pids] == [0] * SIZE


def test_a_signal_reaches_a_process_whose_others_do_not_join():
    late = lambda rank: time.sleep(50 * (rank == 1))  # noqa: E731
    with Group(idle, late) as group:
        time.sleep(1.0)
        started = time.monotonic()
        for rank in (0, 2):
            os.kill(group.pids[rank], signal.SIGTERM)
        assert [ended(group.pids[rank]) for rank in (0, 2)] == [1, 1], "Stopped, which a forked process reports with 1"
        assert time.monotonic() - started < SOON


def test_without_lifelines_a_world_works_as_before(monkeypatch):
    """As where a network lets no connection through but those of the engine."""

    def refuse(*_) -> None:
        raise ConnectionRefusedError

    def work(joined):
        assert not joined.lifelines.ends
        joined.wait()
        assert joined.from_main("text") == "text"
        world.leave()

    monkeypatch.setattr(socket, "create_connection", refuse)
    with Group(work) as group:
        assert [ended(pid) for pid in group.pids] == [0] * SIZE


def test_training_that_loses_a_process_while_sampling_says_so(tmp_path):
    """SIGTERM, by which a launcher ends the others, is there a request to stop after the step, which never ends."""

    def die_sampling() -> None:
        if os.environ["RANK"] == "1":
            sampling.generate = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    flags = train_flags(tmp_path, 2, "--sample_step=2", "--sample_size=64", *SAMPLING)  # more than one group
    main, other = processes(2, "ANN_train.py", *flags, before=die_sampling)
    assert (main.returncode, other.returncode) == (1, -signal.SIGKILL)
    last = main.stderr.strip().splitlines()[-1]
    assert last.startswith("error: another process of this run has ended") and "process 1" in last
    assert "Traceback" not in main.stderr
