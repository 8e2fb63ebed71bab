"""Files are whole at every moment; a disk that refuses leaves the old file and no litter; litter is swept."""

import contextlib
import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from ann2snn.errors import UserError
from ann2snn.files import atomic
from ann2snn.files.atomic import HOST, new_folder, replacing, sweep, write_text
from ann2snn.generate.images import save_grid
from tests.disks import NEW_PROCESSES, fill, may_unshare, read_only, small_disk, unshare
from tests.processes import child_inside, ended, fork, kill

BIG = "x" * 400_000


def refusal(path, text=BIG) -> str:
    with pytest.raises(UserError) as error:
        write_text(path, text)
    message = str(error.value)
    assert message.startswith(f"cannot write {path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "😀" * 63])
def test_a_file_and_a_folder_may_have_the_longest_name_there_is(tmp_path, name):
    for replaced in ("old", "new"):
        write_text(tmp_path / name, replaced)
    with replacing(tmp_path / name, previous=tmp_path / f"a{name[1:]}") as temporary:
        assert atomic._TEMPORARY.fullmatch(temporary.name)  # or no sweep would find it
        temporary.write_text("newest")
    assert [path.read_text() for path in (tmp_path / name, tmp_path / f"a{name[1:]}")] == ["newest", "new"]
    with new_folder(tmp_path / "new" / name) as folder:
        (folder / "file").write_text("in it")
    assert (tmp_path / "new" / name / "file").read_text() == "in it"
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"a{name[1:]}", "new"])


# ---- disks that refuse ----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do():
    with small_disk("256k") as disk:
        path = disk / "file"
        write_text(path, "old")
        assert "No space left on device; free some space" in refusal(path)
        assert path.read_text() == "old" and os.listdir(disk) == ["file"]
        write_text(path, "new")
        assert path.read_text() == "new"


def test_images_on_a_full_disk():
    import torch

    with small_disk("64k") as disk:
        fill(disk)
        noise = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
        with pytest.raises(UserError, match=r"cannot write .*No space left"):
            save_grid(noise, disk / "grid.png", 1)
        assert os.listdir(disk) == ["filler"]


def test_a_disk_that_becomes_read_only():
    with small_disk() as disk:
        path = disk / "file"
        write_text(path, "old")
        with read_only(disk):
            assert "Read-only file system" in refusal(path)
            assert path.read_text() == "old"


def test_a_disk_that_becomes_read_only_while_writing():
    with small_disk() as disk:
        path = disk / "file"
        write_text(path, "old")
        with contextlib.ExitStack() as stack:
            with pytest.raises(UserError, match="Read-only file system"), replacing(path) as temporary:
                temporary.write_text("new")
                stack.enter_context(read_only(disk))
            assert path.read_text() == "old"


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_vanished_folder(tmp_path, when):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(UserError, match="No such file or directory; its folder is not there"):
        if when == "before":
            shutil.rmtree(folder)
        with replacing(folder / "file") as temporary:
            temporary.write_text("new")
            shutil.rmtree(folder)
    assert not folder.exists()


def test_a_limit_on_file_sizes(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        assert "File too large; lift the limit" in refusal(path)
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]

    assert ended(fork(limited)) == 0


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "file").mkdir()
    assert "directory" in refusal(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


# ---- the previous file ----------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    with replacing(path, path.with_name("previous")) as temporary:
        temporary.write_text(text)


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_previous_file_stays(tmp_path, links, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    write(path, "1")
    assert state(tmp_path) == {"file": "1"}
    write(path, "2")
    assert state(tmp_path) == {"file": "2", "previous": "1"}
    write(path, "3")
    assert state(tmp_path) == {"file": "3", "previous": "2"}
    path.unlink()
    write(path, "4")
    assert state(tmp_path) == {"file": "4", "previous": "2"}


def test_a_crash_between_linking_and_renaming_leaves_no_third_name(tmp_path):
    write(tmp_path / "file", "1")
    os.link(tmp_path / "file", tmp_path / "previous")  # as far as the killed program came
    write(tmp_path / "file", "2")
    assert state(tmp_path) == {"file": "2", "previous": "1"}


def test_a_refused_write_leaves_both_files():
    with small_disk("256k") as disk:
        write(disk / "file", "1")
        write(disk / "file", "2")
        with pytest.raises(UserError, match="No space left"):
            write(disk / "file", BIG)
        assert state(disk) == {"file": "2", "previous": "1"}


def test_the_name_is_never_missing(tmp_path):
    path = tmp_path / "file"
    write(path, "0")

    def write_on():
        for number in range(300):
            write(path, str(number))

    child = fork(write_on)
    looks = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert path.read_text() != ""
        looks += 1
    assert looks > 100 and state(tmp_path) == {"file": "299", "previous": "298"}


# ---- litter ---------------------------------------------------------------------------------------------------------


def begun(path: Path):
    """A context in which a file is half-written."""

    @contextlib.contextmanager
    def writing():
        with replacing(path) as temporary:
            temporary.write_text("half")
            yield

    return writing


def test_sweep_takes_what_a_killed_process_left_and_nothing_of_the_living(tmp_path):
    folder = tmp_path / "SNN_2bit_ft" / "model_backpacks"
    folder.mkdir(parents=True)
    with child_inside(begun(folder / "a.pt")) as child:
        [temporary] = os.listdir(folder)
        assert temporary.startswith(f".a.pt.{HOST}.{child}.") and temporary.endswith(".tmp")
        assert sweep(tmp_path) == []
        kill(child)
        assert sweep(tmp_path) == [folder / temporary]
    assert os.listdir(folder) == []


def test_sweep_leaves_everything_else(tmp_path):
    dead = fork(lambda: None)
    ended(dead)
    swept = f".ckpt.pt.{HOST}.{dead}.0123abcd.tmp"
    kept = [
        f".ckpt.pt.elsewhere.{dead}.0123abcd.tmp",
        f"ckpt.pt.{HOST}.{dead}.0123abcd.tmp",
        f".ckpt.pt.{HOST}.{dead}.0123abcd.tmp.txt",
        f".ckpt.pt.{HOST}.{dead}.0123abcg.tmp",
        f".ckpt.pt.{HOST}.{os.getppid()}.0123abcd.tmp",
        f".ckpt.pt.{HOST}.9999999999.0123abcd.tmp",
        f".{HOST}.{dead}.0123abcd.tmp",
        ".ckpt.pt.tmp",
        "ckpt.pt",
    ]
    for name in [swept, *kept]:
        (tmp_path / name).write_text(name)
    deep = tmp_path / "1" / "2" / "3"
    deep.mkdir(parents=True)
    (deep / swept).write_text("")
    (tmp_path / "link").symlink_to(deep)
    assert sweep(tmp_path) == [tmp_path / swept]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "1", "link"]) and os.listdir(deep) == [swept]
    assert sweep(tmp_path / "nowhere") == []


def test_a_number_given_to_a_second_process_does_not_protect_what_the_first_left(tmp_path):
    left = tmp_path / f".ckpt.pt.{HOST}.{os.getpid()}.0123abcd.tmp"
    left.write_text("")
    with begun(tmp_path / "ckpt.pt")():
        assert sweep(tmp_path) == [left]
    assert (tmp_path / "ckpt.pt").read_text() == "half" and not atomic._mine


def sweep_as_elsewhere(folder: Path) -> bool:
    """Sweep in a process that sees no other one, as in a container; whether anything was removed."""

    def elsewhere() -> None:
        unshare(NEW_PROCESSES)
        os._exit(ended(fork(lambda: os._exit(3 if sweep(folder) else 0))))

    return ended(fork(elsewhere)) == 3


@pytest.mark.skipif(not may_unshare(), reason="no name spaces here")
def test_a_container_with_this_hosts_name_leaves_what_is_being_written_here(tmp_path):
    with child_inside(begun(tmp_path / "a.pt")) as child:
        assert not sweep_as_elsewhere(tmp_path)
        kill(child)
        assert sweep_as_elsewhere(tmp_path)
    assert os.listdir(tmp_path) == []


def begun_folder(path: Path):
    @contextlib.contextmanager
    def inside():
        with new_folder(path) as temporary:
            (temporary / "half").write_text("half")
            yield

    return inside


@pytest.mark.skipif(not may_unshare(), reason="no name spaces here")
def test_folders_are_swept_as_files_are(tmp_path):
    with child_inside(begun_folder(tmp_path / "a")) as child:
        [temporary] = os.listdir(tmp_path)
        assert sweep(tmp_path) == [] and not sweep_as_elsewhere(tmp_path)
        (tmp_path / "link").symlink_to(temporary)
        kill(child)
        assert sweep(tmp_path, depth=0) == [tmp_path / temporary]
    assert os.listdir(tmp_path) == ["link"]
    (tmp_path / f".link.{HOST}.{child}.0123abcd.tmp").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    assert sweep(tmp_path) == []


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "above" / "new") as temporary:
        (temporary / "file").write_text("content")
        assert os.listdir(tmp_path / "above") == [temporary.name]
    assert state(tmp_path / "above" / "new") == {"file": "content"}
    with pytest.raises(UserError, match="cannot write .*new: Directory not empty"), new_folder(tmp_path / "above/new"):
        pass
    assert os.listdir(tmp_path / "above") == ["new"] and not atomic._mine


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.skipif(not may_unshare(), reason="no name spaces here")
def test_nor_does_it_take_the_previous_file_on_its_way_to_its_name(tmp_path, links, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "file", "1")
    original = os.replace

    def replace(*args):
        assert not sweep_as_elsewhere(tmp_path)
        original(*args)

    monkeypatch.setattr(os, "replace", replace)
    write(tmp_path / "file", "2")
    assert state(tmp_path) == {"file": "2", "previous": "1"}


def test_where_locks_are_refused_only_old_files_are_swept(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    dead = fork(lambda: None)
    ended(dead)
    left = tmp_path / f".ckpt.pt.{HOST}.{dead}.0123abcd.tmp"
    left.write_text("")
    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    write_text(tmp_path / "file", "written all the same")
    assert sweep(tmp_path) == []
    os.utime(left, (1e9, 1e9))
    assert sweep(tmp_path) == [left] and os.listdir(tmp_path) == ["file"]
