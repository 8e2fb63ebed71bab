"""A damaged newest checkpoint is detected, kept aside, and the previous one used, loudly; kill -9 costs nothing."""

import os
import random
import shutil
import time

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.checkpoints.checkpoint import previous_of, read_newest, rescue, save
from ann2snn.checkpoints.seal import content_hash
from ann2snn.errors import UserError
from ann2snn.files.atomic import sweep
from tests.disks import fill, read_only, small_disk
from tests.processes import fork, kill


def payload(step: int) -> dict:
    weights = {f"w{i}": torch.full((20, 20), float(step + i)) for i in range(4)}
    return {"kind": "ann", "format": 1, "ema_model": weights, "step": step}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ckpt.pt"
    for step in (1, 2):
        save(path, payload(step), keep_previous=True)
    return path


def damage(path) -> bytes:
    """Change one byte inside a tensor; returns the file's content."""
    data = bytearray(path.read_bytes())
    place = bytes(data).index(torch.full((20,), float(checkpoint.read(path)["step"])).numpy().tobytes())
    data[place + 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


def names(path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_the_newest_is_read_without_a_word(path, capsys):
    found, content = read_newest(path)
    assert (found, content["step"]) == (path, 2) and capsys.readouterr().err == ""
    assert checkpoint.read(previous_of(path))["step"] == 1 and names(path) == ["ckpt.prev.pt", "ckpt.pt"]


@pytest.mark.parametrize("kind", ["flipped bit", "cut", "empty", "zeros"])
def test_a_damaged_newest_gives_way_to_the_previous(path, kind, capsys):
    data = path.read_bytes()
    if kind == "flipped bit":
        data = damage(path)
    else:
        data = {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[kind]
        path.write_bytes(data)
    found, content = read_newest(path)
    assert (found.name, content["step"]) == ("ckpt.prev.pt", 1)
    assert path.with_name("ckpt.damaged.pt").read_bytes() == data and not path.exists()
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: ") and warning.count("\n") == 1
    for word in (str(path), "ckpt.prev.pt, of step 1", "ckpt.damaged.pt"):
        assert word in warning
    assert read_newest(path)[1]["step"] == 1 and "ckpt.pt is missing" in capsys.readouterr().err
    save(path, payload(3), keep_previous=True)
    assert read_newest(path)[1]["step"] == 3 and checkpoint.read(found)["step"] == 1


def test_content_that_went_wrong_before_it_was_written_gives_way_too(path, capsys):
    torch.save(payload(3) | {"hash": content_hash(payload(2))}, path)  # the file itself is whole
    assert read_newest(path)[1]["step"] == 1
    assert "does not match its hash" in capsys.readouterr().err


def test_what_was_moved_aside_earlier_is_not_overwritten(path):
    for name in ("ckpt.damaged.pt", "ckpt.damaged.2.pt"):
        path.with_name(name).write_text(name)
    path.write_bytes(b"")
    read_newest(path)
    assert path.with_name("ckpt.damaged.2.pt").read_text() == "ckpt.damaged.2.pt"
    assert path.with_name("ckpt.damaged.3.pt").read_bytes() == b""


def test_two_damaged_files_are_both_named_and_left_alone(path):
    path.write_bytes(path.read_bytes()[:500])
    previous_of(path).write_bytes(b"")
    with pytest.raises(UserError) as error:
        read_newest(path)
    assert f"refusing {path}: " in str(error.value) and f"refusing {previous_of(path)}: " in str(error.value)
    assert "\n" not in str(error.value) and names(path) == ["ckpt.prev.pt", "ckpt.pt"]


def test_a_damaged_only_file_is_refused_and_left_alone(path):
    previous_of(path).unlink()
    damage(path)
    with pytest.raises(UserError, match="does not match its hash"):
        read_newest(path)
    assert names(path) == ["ckpt.pt"]
    path.unlink()
    with pytest.raises(UserError, match="no checkpoint at"):
        read_newest(path)


def test_foreign_files_and_other_versions_do_not_fall_back(path):
    contents = [b"hello", b"\x80\x02}q\x00."]
    for content in ({"model": {}}, torch.zeros(3), payload(1) | {"ema_model": {"w": torch.eye(2).to_sparse()}}):
        torch.save(content, path)
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match="refusing"):
            read_newest(path)
        assert path.read_bytes() == content and names(path) == ["ckpt.prev.pt", "ckpt.pt"]


def test_a_damaged_file_that_cannot_be_moved_is_not_passed_over(capsys):
    with small_disk("1m") as disk:
        path = disk / "ckpt.pt"
        for step in (1, 2):
            save(path, payload(step), keep_previous=True)
        path.write_bytes(b"")
        with read_only(disk), pytest.raises(UserError, match="cannot be moved aside"):
            read_newest(path)
    assert capsys.readouterr().err == ""


# ---- disks that refuse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [100, 3000, 12_000, 20_000, 100_000])
def test_a_full_disk_leaves_both_checkpoints(number):
    """Sizes that fail in the middle of a tensor, between two, and at the end, where torch hides the cause."""
    with small_disk("64k") as disk:
        path = disk / "ckpt.pt"
        for step in (1, 2):
            save(path, payload(step), keep_previous=True)
        (disk / "reserve").write_bytes(bytes(12_000))
        fill(disk)
        (disk / "reserve").unlink()
        before = {p.name: p.read_bytes() for p in disk.iterdir()}
        big = payload(3) | {"x": torch.randn(number), "y": [torch.randn(40) for _ in range(60)]}
        with pytest.raises(UserError, match=rf"cannot write {path}: No space left on device; free some space"):
            save(path, big, keep_previous=True)
        assert {p.name: p.read_bytes() for p in disk.iterdir()} == before
        assert read_newest(path)[1]["step"] == 2


def test_what_a_vanished_folder_refuses_is_rescued(tmp_path, monkeypatch):
    folder, shelter = tmp_path / "run", tmp_path / "tmp"
    folder.mkdir()
    shelter.mkdir()
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(shelter))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="its folder is not there"):
        save(folder / "ckpt.pt", payload(4))
    first, second = rescue(payload(4), "my/run"), rescue(payload(4), "my/run")
    assert first == shelter / "ann2snn-rescue-my_run-4.pt" and second == shelter / "ann2snn-rescue-my_run-4.2.pt"
    assert checkpoint.read(first)["step"] == checkpoint.read(second)["step"] == 4
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert rescue(payload(4), "run") is None


def test_a_link_in_the_temporary_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "ann2snn-rescue-run-4.pt").symlink_to(target)
    assert rescue(payload(4), "run").name == "ann2snn-rescue-run-4.2.pt" and target.read_text() == "precious"


def test_rescue_on_a_full_disk_gives_up(monkeypatch):
    with small_disk("16k") as disk:
        fill(disk)
        monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(disk))
        assert rescue(payload(4), "run") is None and os.listdir(disk) == ["filler"]


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_kills_at_random_moments_never_leave_a_bad_file(tmp_path, capsys):
    path, choice, step, littered = tmp_path / "ckpt.pt", random.Random(1), 0, 0
    save(path, payload(0))
    for kills in range(1, 1000):
        if kills > 15 and step > 15 and littered > 2:  # a busy machine needs more of them
            break

        def save_on(first=step):
            for number in range(first + 1, first + 100_000):
                save(path, payload(number), keep_previous=True)

        child = fork(save_on)
        time.sleep(choice.uniform(0.0, 0.06))
        kill(child)
        content = checkpoint.read(path)
        assert content["hash"] == content_hash(payload(content["step"])) and content["step"] >= step
        if previous_of(path).exists():
            assert checkpoint.read(previous_of(path))["step"] in (content["step"], content["step"] - 1)
        step = content["step"]
        littered += bool(sweep(tmp_path))
        assert set(os.listdir(tmp_path)) <= {"ckpt.pt", "ckpt.prev.pt"}
    assert step > 15 and littered > 2, "the kills did not come while files were written"
    assert read_newest(path)[1]["step"] == step and capsys.readouterr().err == ""
