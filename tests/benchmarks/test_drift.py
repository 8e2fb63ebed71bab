"""The table of drifting sums: its rows, its file, its refusals."""

import json

import pytest

from ann2snn.checkpoints import checkpoint
from benchmarks import drift
from tests.helpers import random_ann


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    ann = random_ann(bits=3, ch=4, ch_mult=(1,), spike_driven=True)
    where = tmp_path_factory.mktemp("drift") / "ckpt.pt"
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    state = ann.float().state_dict()
    checkpoint.save(where, {"kind": "ann", "format": 1, "step": 7, "ema_model": state, "config": config})
    return where


def test_whole_sums_are_exact_and_others_drift(path, tmp_path, capsys):
    out = tmp_path / "drift.json"
    sums = ["int32", "float32", "float16", "float16/1"]
    assert drift.main([f"--net={path}", "--calls=7", "--first=6", f"--out={out}", "--sums", *sums]) == 0
    found = json.loads(out.read_text())
    assert found["command"].startswith("python -m benchmarks.drift --net") and found["step"] == 7
    assert {"processor", "date", "torch"} <= found.keys()
    rows = {(row["sums"], row["refresh"], row["calls"]): row for row in found["rows"]}
    assert sorted({calls for *_, calls in rows}) == [1, 6] and len(rows) == 8
    exact, wide, narrow, anew = (rows[(*drift.parsed(way), 6)] for way in sums)
    assert exact["worst_error"] == exact["levels_differing"] == exact["answer_error"] == 0
    assert 0 < wide["worst_error"] < 1e-5 < anew["worst_error"] < narrow["worst_error"]
    printed = capsys.readouterr().out
    assert found["command"] in printed and found["date"] in printed and "levels that differ" in printed


@pytest.mark.parametrize("more", [["--sums", "int8"], ["--sums", "int32/x"], ["--first=0"], ["--net=none.pt"]])
def test_what_it_refuses_is_one_line(path, more, capsys):
    assert drift.main([f"--net={path}", *more]) == 2
    assert capsys.readouterr().err.startswith("error: ")
