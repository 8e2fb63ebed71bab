"""`--stream_norm=frozen` from the command line: conversion calibrates, later stages read what it stored."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.io import checkpoint
from ann2snn.report.modes import Mode
from tests.helpers import random_ann
from tests.scripts import SAMPLING, check, script

FROZEN = ["--schedule=stream", "--stream_norm=frozen"]
QUICK = ["--gap_images=1", "--gen_images=0", *SAMPLING]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run folder with a trained network."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    folder.mkdir()
    ann = random_ann(in_channels=1, image_size=8).float()
    config = {"unet": ann.config.to_dict(), "diffusion": ann.diffusion.to_dict()}
    payload = {"kind": "ann", "format": 1, "ema_model": ann.state_dict(), "config": config}
    checkpoint.save(folder / "ckpt.pt", payload)
    return folder


def generate(logdir, *flags):
    return script("evaluate.py", "--sample_only", f"--logdir={logdir}", "--num_images=2", *SAMPLING, *flags)


def refused(done, *words):
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_conversion_calibrates_and_evaluation_needs_no_flag(logdir):
    check(script("SNN_conversion.py", "--eval", f"--logdir={logdir}", *FROZEN, "--norm_bins=3", *QUICK))
    state = torch.load(logdir / "converted_snn.pt", weights_only=True)["ema_model"]
    assert state["tail.0.frozen_var"].shape == (3, 2)
    check(generate(logdir))
    [folder] = [path for path in (logdir / "generated").iterdir() if path.is_dir()]
    assert "stream_frozen_settle0" in folder.name and len(list(folder.glob("*.png"))) == 2


def test_a_network_without_statistics_is_refused_before_anything_is_written(logdir, tmp_path):
    (tmp_path / "ckpt.pt").write_bytes((logdir / "ckpt.pt").read_bytes())
    check(script("SNN_conversion.py", "--eval", f"--logdir={tmp_path}", *QUICK))
    before = sorted(tmp_path.rglob("*"))
    refused(generate(tmp_path, *FROZEN), "--stream_norm=frozen", "SNN_conversion.py")
    assert sorted(tmp_path.rglob("*")) == before


def test_bins_that_do_not_fit_are_refused(logdir):
    flags = ["--eval", f"--logdir={logdir}", *FROZEN, *QUICK]
    for bins in ("0", "21"):
        refused(script("SNN_conversion.py", *flags, f"--norm_bins={bins}"), f"--norm_bins={bins}", "1 to 20")


@pytest.mark.parametrize(
    ("norm", "label"),
    [("frozen", "stream frozen norm"), ("per_step", "stream per-step norm"), ("cumulative", "stream")],
)
def test_reports_name_the_norm(norm, label):
    assert Mode("converted", SpikingConfig("stream", stream_norm=norm)).schedule_label == label
