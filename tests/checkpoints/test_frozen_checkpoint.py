"""Norms with fixed statistics, which earlier versions had, are refused with what to use instead."""

import pytest
import torch

from ann2snn import UserError
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from tests.helpers import random_ann
from tests.scripts import SAMPLING, script

INSTEAD = "--stream_norm=frozen: .* are gone; use cumulative, .*--settle_steps=auto"


@pytest.mark.parametrize("schedule", ["stream", "layer_sync"])
def test_asking_for_them(schedule):
    with pytest.raises(UserError, match=INSTEAD):
        SpikingConfig(schedule, stream_norm="frozen")
    with pytest.raises(UserError, match=INSTEAD):
        convert(random_ann(), schedule=schedule, stream_norm="frozen")


def test_a_file_that_asks_for_them(tmp_path):
    payload = checkpoint.payload_of(convert(random_ann().float()))
    payload["config"]["spiking"]["stream_norm"] = "frozen"
    checkpoint.save(tmp_path / "snn.pt", payload)
    with pytest.raises(UserError, match=INSTEAD) as refusal:
        checkpoint.load(tmp_path / "snn.pt")
    assert str(refusal.value).startswith(f"refusing {tmp_path}/snn.pt: ") and "\n" not in str(refusal.value)


def test_a_file_with_their_statistics(tmp_path):
    payload = checkpoint.payload_of(convert(random_ann().float()))
    payload["ema_model"] = dict(payload["ema_model"]) | {"tail.0.frozen_mean": torch.zeros(3, 2)}
    checkpoint.save(tmp_path / "snn.pt", payload)
    with pytest.raises(UserError, match=r"unknown entry tail\.0\.frozen_mean"):
        checkpoint.load(tmp_path / "snn.pt")


def test_a_flag_that_asks_for_them(tmp_path):
    flags = ["--eval", f"--logdir={tmp_path}", "--schedule=stream", "--stream_norm=frozen", *SAMPLING]
    done = script("SNN_conversion.py", *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "are gone; use cumulative" in done.stderr and not list(tmp_path.iterdir())
