"""The table of carried samplers: its rows, its file, its refusals."""

import json

import pytest

from ann2snn.checkpoints import checkpoint
from benchmarks import carry, carry_figure
from tests.helpers import random_ann


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    ann = random_ann(bits=3, ch=4, ch_mult=(1,))
    where = tmp_path_factory.mktemp("carry") / "ckpt.pt"
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    state = ann.float().state_dict()
    checkpoint.save(where, {"kind": "ann", "format": 1, "step": 0, "ema_model": state, "config": config})
    return where


@pytest.mark.slow
def test_carrying_is_exact_and_takes_fewer_spikes(path, tmp_path, capsys):
    out = tmp_path / "carry.json"
    assert carry.main([f"--checkpoint={path}", "--steps=4", "--images=2", "--eta", "0", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["command"].startswith("python -m benchmarks.carry --checkpoint") and found["images"] == 2
    rows = {(row["eta"], row["way"]): row for row in found["rows"]}
    for eta in (0.0,):
        carried = [rows[eta, f"{way}, carried"] for way in carry.WAYS]
        assert all(row["worst_error"] <= 1e-12 for row in carried)
        assert [row["share_of_rest"] for row in carried] == sorted(row["share_of_rest"] for row in carried)
        assert carried[0]["carried_share_of_rest"] < carried[0]["share_of_rest"] < 1
        assert {"b-bit ANN, differences", "fp32 ANN"} <= {way for at, way in rows if at == eta}
    printed = capsys.readouterr().out
    assert "layer_sync, carried" in printed and "b-bit ANN, zeros skipped" in printed


@pytest.mark.slow
def test_scores_are_drawn_and_what_is_known_is_not_computed_again(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(carry, "scorer", lambda *_: lambda net, sample: 10.0 - sample.steps)
    out, plot = tmp_path / "carry.json", tmp_path / "carry.png"
    flags = [f"--checkpoint={path}", "--images=1", "--eta", "0", f"--out={out}", "--quick", "--stats=any.npz"]
    assert carry.main([*flags, "--steps", "3", "--score=4"]) == 0
    before = json.loads(out.read_text())["rows"]
    more = ["--steps", "3", "5", "--sampler", "ddim", "dpmpp", "--carry_steps", "1", "--score=4", f"--plot={plot}"]
    assert carry.main([*flags, *more]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[: len(before)] == before and plot.read_bytes().startswith(b"\x89PNG")
    found = {(row["sampler"], row["steps"], row["score"]) for row in rows if row["way"] == "layer_sync, carried"}
    assert found == {("ddim", 3, 7.0), ("ddim", 5, 5.0), ("dpmpp", 3, 7.0), ("dpmpp", 5, 5.0)}
    limited = [row for row in rows if row["way"] == "stream, 1 steps a call"]
    assert len(limited) == 3 and all(row["worst_error"] > 0 for row in limited)
    assert carry_figure.best([(1, 5), (2, 6), (3, 4), (3, 3)]) == [(1, 5), (3, 3)]


def test_a_missing_or_spiking_network_is_one_line(path, tmp_path, capsys):
    assert carry.main([f"--checkpoint={tmp_path}/none.pt"]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")
    assert carry.main([f"--checkpoint={path}", "--score=4"]) == 2
    assert "--stats" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[]")
    assert carry.main([f"--checkpoint={path}", f"--out={tmp_path}/other.json"]) == 2
    assert "choose another --out" in capsys.readouterr().err
