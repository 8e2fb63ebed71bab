"""The table of carried samplers: its rows, its file, its refusals."""

import json

import pytest

from ann2snn.checkpoints import checkpoint
from benchmarks import carry
from tests.helpers import random_ann


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    ann = random_ann(bits=3, ch=4, ch_mult=(1,))
    where = tmp_path_factory.mktemp("carry") / "ckpt.pt"
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    state = ann.float().state_dict()
    checkpoint.save(where, {"kind": "ann", "format": 1, "step": 0, "ema_model": state, "config": config})
    return where


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


def test_a_missing_or_spiking_network_is_one_line(path, tmp_path, capsys):
    assert carry.main([f"--checkpoint={tmp_path}/none.pt"]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")
