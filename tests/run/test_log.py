"""The run's log survives kills and full disks, TensorBoard can read its part, and no score is lost silently."""

import json
import os
import shutil
import threading

import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.files.lines import append_line
from ann2snn.run import board as board_module
from ann2snn.run.board import Board
from ann2snn.run.lines import append_result, read_log
from ann2snn.run.log import RunLog
from tests.disks import fill, read_only, small_disk
from tests.processes import fork, kill

PICTURE = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)


def warnings(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("WARNING: ") for line in lines), lines
    return lines


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


# ---- what is written ------------------------------------------------------------------------------------------------


def test_both_files_hold_what_was_logged(tmp_path):
    log = RunLog(tmp_path, "train")
    for step in range(3):
        log.scalars(step, loss=1 / (step + 1), lr=0.5)
    log.image(2, "sample", PICTURE)
    log.close()
    assert read_log(tmp_path / "log.jsonl") == [
        {"stage": "train", "step": s, "loss": 1 / (s + 1), "lr": 0.5} for s in range(3)
    ]
    board = events(tmp_path)
    assert [e.step for e in board.Scalars("loss")] == [0, 1, 2]
    assert [e.value for e in board.Scalars("loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [(e.step, e.width, e.height) for e in board.Images("sample")] == [(2, 8, 8)]


def test_the_board_reads_as_that_of_the_usual_writer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    theirs, ours = SummaryWriter(str(tmp_path / "theirs"), purge_step=3), None
    (tmp_path / "ours").mkdir()
    ours = Board(tmp_path / "ours", purge_step=3)
    for step in range(3, 6):
        theirs.add_scalar("loss", step / 7, step)
        ours.scalars(step, loss=step / 7)
    theirs.add_image("sample", PICTURE, 5)
    ours.image(5, "sample", PICTURE)
    theirs.close()
    ours.flush()
    first, second = events(tmp_path / "theirs"), events(tmp_path / "ours")
    assert first.Tags() == second.Tags()
    for tag in ("loss",):
        assert [(e.step, e.value) for e in first.Scalars(tag)] == [(e.step, e.value) for e in second.Scalars(tag)]
    assert [e.encoded_image_string for e in first.Images("sample")] == [
        e.encoded_image_string for e in second.Images("sample")
    ]


def test_a_resumed_run_replaces_the_entries_since_its_checkpoint(tmp_path):
    first = RunLog(tmp_path, "train")
    for step in range(6):
        first.scalars(step, loss=float(step))
    append_line(tmp_path / "log.jsonl", json.dumps({"stage": "finetune", "step": 9}))
    first.close()
    second = RunLog(tmp_path, "train", start_step=4)
    second.scalars(4, loss=40.0)
    second.close()
    entries = read_log(tmp_path / "log.jsonl")
    assert [e["step"] for e in entries] == [0, 1, 2, 3, 9, 4] and entries[-1]["loss"] == 40.0
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]


def test_no_thread_writes_in_the_background(tmp_path):
    before = threading.active_count()
    log = RunLog(tmp_path, "train")
    log.scalars(0, loss=1.0)
    assert threading.active_count() == before
    log.close()


def test_the_board_is_written_out_now_and_then(tmp_path, monkeypatch):
    board = Board(tmp_path)
    size = board.path.stat().st_size
    board.scalars(0, loss=1.0)
    assert board.path.stat().st_size == size
    monkeypatch.setattr(board_module, "FLUSH_SECONDS", 0.0)
    board.scalars(1, loss=1.0)
    assert board.path.stat().st_size > size and not board.waiting


def test_a_deleted_board_is_not_continued_without_its_beginning(tmp_path):
    board = Board(tmp_path)
    board.path.unlink()
    board.scalars(0, loss=1.0)
    with pytest.raises(FileNotFoundError):
        board.flush()
    assert os.listdir(tmp_path) == []


# ---- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 38])
def test_a_cut_line_does_not_swallow_the_next(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    log = RunLog(tmp_path, "train")
    for step in range(2):
        log.scalars(step, loss=0.5)
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = RunLog(tmp_path, "train", start_step=2)
    again.scalars(2, loss=0.25)
    again.scalars(3, loss=0.125)
    again.close()
    steps = [entry["step"] for entry in read_log(path)]
    assert steps == ([0, 1, 2, 3] if cut == 1 else [0, 2, 3])  # without its line break alone the line is whole


def test_a_cut_line_of_scores_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "snn_eval.txt"
    append_result(path, {"FID": 1.5})
    append_result(path, {"FID": 2.5})
    path.write_bytes(path.read_bytes()[:-4])
    append_result(path, {"FID": 3.5})
    assert path.read_text() == '{"FID": 1.5}\n{"FID": 2\n{"FID": 3.5}\n'


def test_lines_are_whole_after_kills(tmp_path):
    path = tmp_path / "snn_eval.txt"

    def write_on():
        while True:
            append_line(path, "x" * 500)

    for _ in range(10):
        child = fork(write_on)
        while not path.exists() or path.stat().st_size == 0:
            pass
        kill(child)
        append_line(path, "y")
    lines = path.read_text().splitlines()
    assert lines.count("y") == 10 and set(lines) <= {"x" * 500, "y"}


# ---- disks that refuse ----------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_costs_the_log_but_not_the_run(capsys, monkeypatch):
    monkeypatch.setattr(board_module, "FLUSH_SECONDS", 0.0)
    with small_disk("128k") as disk:
        log = RunLog(disk, "train")
        log.scalars(0, loss=1.0)
        fill(disk)
        picture = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
        for step in range(1, 200):
            log.scalars(step, loss=1.0, lr=0.5)
            log.image(step, "sample", picture)
        log.close()
        told = warnings(capsys)
        assert len(told) == 2 and all("No space left on device" in line for line in told)
        assert sorted("log.jsonl" in line for line in told) == [False, True]
        assert read_log(disk / "log.jsonl")[0]["step"] == 0 and events(disk).Scalars("loss")[0].step == 0


def test_a_disk_that_is_full_at_the_start_and_at_the_end(capsys):
    with small_disk("128k") as disk:
        fill(disk)
        log = RunLog(disk, "train")
        log.scalars(0, loss=1.0)
        log.image(0, "sample", PICTURE)
        log.close()
        assert len(warnings(capsys)) == 2
        (disk / "filler").unlink()
        log = RunLog(disk, "train")
        log.image(0, "sample", torch.randint(256, (3, 64, 64), dtype=torch.uint8))
        fill(disk)
        log.close()  # what was still in memory finds no room
        log.close()
        assert len(warnings(capsys)) == 1


def test_a_log_that_cannot_be_rewritten_on_resume(capsys):
    with small_disk("128k") as disk:
        log = RunLog(disk, "train")
        for step in range(40):
            log.scalars(step, loss=1.0)
        log.close()
        before = (disk / "log.jsonl").read_bytes()
        with read_only(disk):
            log = RunLog(disk, "train", start_step=20)
            log.scalars(20, loss=2.0)
            log.close()
        assert (disk / "log.jsonl").read_bytes() == before and len(warnings(capsys)) == 2


def test_a_folder_that_vanishes(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    log = RunLog(folder, "train")
    log.scalars(0, loss=1.0)
    shutil.rmtree(folder)
    for step in range(1, 5):
        log.scalars(step, loss=1.0)
    log.close()
    told = warnings(capsys)
    assert len(told) == 2 and all("its folder is not there" in line for line in told)
    assert not folder.exists()


def test_a_score_that_cannot_be_written_is_in_the_error(tmp_path):
    with small_disk("64k") as disk:
        path = disk / "snn_eval.txt"
        path.write_text(f'{{"FID": {"1.5}":>4087}\n')  # one page: a line more needs another one
        assert path.stat().st_size == 4096
        fill(disk)
        line = {"FID": 2.5, "note": "x" * 300}
        with pytest.raises(UserError, match="No space left on device") as error:
            append_result(path, line)
        assert str(error.value).endswith(f"the line was {json.dumps(line)}") and "\n" not in str(error.value)
        os.unlink(disk / "filler")
        append_result(path, {"FID": 3.5})
        assert [json.loads(text) for text in path.read_text().splitlines()] == [{"FID": 1.5}, {"FID": 3.5}]
    with pytest.raises(UserError, match="its folder is not there"):
        append_result(tmp_path / "nowhere" / "snn_eval.txt", {"FID": 1.0})
