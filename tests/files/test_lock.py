"""One run at a time in a folder; the lock ends with its holder and with nothing else."""

import errno
import json
import os
import shutil
import signal
import socket
import threading
import time

import pytest

from ann2snn.errors import UserError
from ann2snn.files import lock
from ann2snn.files.atomic import HOST, replacing, write_text
from ann2snn.files.lock import run_lock
from tests.disks import fill, read_only, small_disk
from tests.processes import child_inside, ended, fork, kill

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="no POSIX record locks here")


def refusal(folder, name="train", patience=0.0) -> str:
    with pytest.raises(UserError) as error, run_lock(folder, name, patience):
        pytest.fail("the lock was given twice")
    assert "\n" not in str(error.value)
    return str(error.value)


def is_free(folder, name="train") -> bool:
    """As another process sees it."""

    def enter():
        try:
            with run_lock(folder, name, 0):
                pass
        except UserError:
            os._exit(3)

    return ended(fork(enter)) == 0


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    with child_inside(lambda: run_lock(tmp_path, "train")) as child:
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path} is in use by another run (pid {child}, host {HOST}, since 2")
        assert message.endswith("): wait for it, stop it, or choose another --logdir")
        content = json.loads((tmp_path / ".train.lock").read_text())
        assert content.keys() == {"pid", "host", "since", "command"} and content["pid"] == child
        with run_lock(tmp_path, "finetune", 0):
            pass


def test_the_lock_of_a_killed_holder_is_taken_over_at_once(tmp_path):
    (tmp_path / ".train.lock").write_text("what an earlier program wrote, and long " * 200)
    with child_inside(lambda: run_lock(tmp_path, "train")) as child:
        kill(child)
        assert f'"pid": {child}' in (tmp_path / ".train.lock").read_text()
        with run_lock(tmp_path, "train", 0):
            assert json.loads((tmp_path / ".train.lock").read_text())["pid"] == os.getpid()


def test_a_worker_of_the_holder_does_not_keep_the_lock(tmp_path):
    mine, theirs = socket.socketpair()

    class Run:
        def __enter__(self):
            self.lock = run_lock(tmp_path, "train")
            self.lock.__enter__()
            worker = fork(signal.pause)  # outlives its parent
            mine.send(worker.to_bytes(8, "little"))

        def __exit__(self, *exc):
            self.lock.__exit__(*exc)

    with child_inside(Run) as holder:
        worker = int.from_bytes(theirs.recv(8), "little")
        assert not is_free(tmp_path)
        kill(holder)
        os.kill(worker, 0)
        assert is_free(tmp_path)
        os.kill(worker, signal.SIGKILL)


def test_a_fork_of_the_holder_may_close_its_files_but_not_lock_again(tmp_path):
    with run_lock(tmp_path, "train"):
        ended(fork(lambda: os.closerange(3, 256)))
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_the_same_process_is_refused_without_losing_its_lock(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with run_lock(tmp_path, "train"):
        for folder in (tmp_path, tmp_path / "link", str(tmp_path)):
            assert "in use by this very process" in refusal(folder)
        assert not is_free(tmp_path)
    with run_lock(tmp_path, "train"):
        pass


def test_an_error_gives_the_lock_back(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path, "train"):
        raise KeyboardInterrupt
    assert is_free(tmp_path) and (tmp_path / ".train.lock").exists()


def test_patience_waits_for_a_holder_that_is_finishing(tmp_path):
    with child_inside(lambda: run_lock(tmp_path, "train")) as child:
        timer = threading.Timer(0.3, os.kill, (child, signal.SIGKILL))
        timer.start()
        began = time.monotonic()
        with run_lock(tmp_path, "train", patience=10):
            assert 0.2 < time.monotonic() - began < 5
        timer.join()


def test_a_folder_made_again_while_waiting_is_locked_as_it_is_now(tmp_path):
    """Deleting a held file frees the name; whoever locks the new one excludes those who waited for the old one."""
    with child_inside(lambda: run_lock(tmp_path, "train")):
        (tmp_path / ".train.lock").unlink()
        with run_lock(tmp_path, "train", 0):
            assert not is_free(tmp_path)


def remove_lock(folder) -> None:
    (folder / ".train.lock").unlink()


def make_again(folder) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".train.lock").write_text("of another run")


def replace_lock(folder) -> None:
    (folder / "copy").write_text((folder / ".train.lock").read_text())
    os.replace(folder / "copy", folder / ".train.lock")


def move_away(folder) -> None:
    os.rename(folder, folder.with_name("moved"))
    folder.mkdir()


@pytest.mark.parametrize("take", [remove_lock, make_again, replace_lock, move_away])
def test_who_has_lost_the_folder_writes_nothing_there_any_more(tmp_path, take):
    folder, other = tmp_path / "run", tmp_path / "other"
    for path in (folder / "inner", other):
        path.mkdir(parents=True)
    with run_lock(folder, "train"):
        write_text(folder / "file", "mine")
        take(folder)
        (folder / "inner").mkdir(exist_ok=True)
        for path in (folder / "file", folder / "inner" / "file"):
            kept = path.read_text() if path.exists() else None
            with pytest.raises(UserError, match="another run may own it"):
                write_text(path, "again")
            assert (path.read_text() if path.exists() else None) == kept
        write_text(other / "file", "elsewhere it may")
    write_text(folder / "file", "without a lock, too")


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", '{"pid": "\\u001b[31m"}', "\xff" * 9000, "[" * 4000])
def test_what_a_foreign_lock_file_says_does_no_harm(tmp_path, content):
    with child_inside(lambda: run_lock(tmp_path, "train")):
        descriptor = os.open(tmp_path / ".train.lock", os.O_WRONLY | os.O_TRUNC)  # not the holder: nothing is dropped
        os.write(descriptor, content.encode("latin-1"))
        os.close(descriptor)
        message = refusal(tmp_path)
        assert "is in use by another run" in message and message.isprintable() and len(message) < 400


def test_links_and_pipes_in_the_way_are_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".a.lock").symlink_to(precious)
    os.mkfifo(tmp_path / ".b.lock")
    (tmp_path / ".c.lock").mkdir()
    assert "cannot make" in refusal(tmp_path, "a") and precious.read_text() == "precious"
    assert "no regular file" in refusal(tmp_path, "b")
    assert "cannot make" in refusal(tmp_path, "c")
    assert "its folder is not there" in refusal(tmp_path / "nowhere")


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with run_lock(tmp_path, "train"):
        pass
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: ") and "No locks available" in warning and warning.count("\n") == 1
    monkeypatch.setattr(lock, "fcntl", None)
    with run_lock(tmp_path, "other"):
        assert not (tmp_path / ".other.lock").exists()


def test_a_full_disk_can_be_locked_and_a_read_only_one_says_why_not():
    with small_disk("16k") as disk:
        fill(disk)
        with run_lock(disk, "train", 0):
            assert not is_free(disk)
        with read_only(disk):
            assert "Read-only file system" in refusal(disk)


def test_entering_sweeps_what_the_killed_run_left(tmp_path):
    with child_inside(lambda: replacing(tmp_path / "ckpt.pt")) as child:
        assert len(os.listdir(tmp_path)) == 1
        kill(child)
        with run_lock(tmp_path, "train"):
            assert os.listdir(tmp_path) == [".train.lock"]
