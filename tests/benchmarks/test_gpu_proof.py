"""The proof for GPUs, tried on a CPU: steps that end, fail or are cut short, and what is reported of them."""

import json
import sys

import pytest

from benchmarks import gpu_proof, gpu_training
from benchmarks.gpu.networks import SCHEDULES, called, sampled, trained
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timings import CALLS


@pytest.fixture
def setting(tmp_path):
    import torch

    return Setting(torch.device("cpu"), True, tmp_path / "found.jsonl")


@pytest.mark.slow
def test_steps_are_reported_and_a_second_run_does_not_mix_with_the_first(tmp_path, capsys):
    flags = ["--device=cpu", "--tiny", f"--out={tmp_path}", "--no-kernels", "--only", "worlds"]
    assert gpu_proof.main([*flags, "--deadline=200", "--patience=9"]) == 0
    found = json.loads((tmp_path / "proof.json").read_text())
    assert [step["state"] for step in found["steps"]] == ["ended"]
    assert (
        found["steps"][0]["findings"][0]["backend"] == "gloo"
        and "| process group |" in (tmp_path / "proof.md").read_text()
    )
    assert gpu_proof.main(flags) == 2 and "choose another --out" in capsys.readouterr().err


def test_a_step_that_hangs_or_fails_stops_nothing(tmp_path, monkeypatch):
    programs = {"hangs": "import time; time.sleep(60)", "fails": "raise SystemExit(3)", "ends": "print()"}
    monkeypatch.setattr(gpu_proof, "STEPS", tuple(gpu_proof.Step(name, 2, name, name) for name in programs))
    monkeypatch.setattr(gpu_proof, "command", lambda step, *_: [sys.executable, "-c", programs[step.name]])
    assert gpu_proof.main([f"--out={tmp_path}", "--device=cpu", "--no-kernels", "--patience=1"]) == 1
    states = [step["state"] for step in json.loads((tmp_path / "proof.json").read_text())["steps"]]
    assert states == ["cut short", "exit code 3", "ended"]


def test_what_the_deadline_leaves_no_time_for_is_said(tmp_path):
    gpu_proof.main([f"--out={tmp_path}", "--device=cpu", "--no-kernels", "--deadline=3"])
    states = {step["state"] for step in json.loads((tmp_path / "proof.json").read_text())["steps"]}
    assert states == {"not started: no time was left"}


@pytest.mark.parametrize("name", ["unet, 2 bits", "attention, 3 bits", "sdm", "fsddim"])
def test_networks_train_and_answer(setting, name):
    config = setting.configs()[name]
    assert trained(setting, config)["waits"] == {} and called(setting, config, None)["finite"]
    if "bits" in name:
        assert called(setting, config, SCHEDULES["stream, settled"])["finite"] and CALLS.keys() <= SCHEDULES.keys()


def test_findings_of_failures_are_findings(setting):
    setting.attempt("good", lambda: sampled(setting, {"sampler": "ddim", "steps": 2}))
    setting.attempt("bad", lambda: sampled(setting, {"sampler": "no such"}))
    good, bad = map(json.loads, setting.out.read_text().splitlines())
    assert "mean" in good and "UserError" in bad["failed"]


@pytest.mark.slow
def test_a_few_seconds_of_training_leave_a_network(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(gpu_training.importlib.util, "find_spec", lambda name: None)  # a score takes half a minute
    assert gpu_training.main([f"--out={out}", "--device=cpu", "--tiny", "--minutes=0.03", "--images=2"]) == 0
    found = json.loads((out / "training.json").read_text())
    assert found["training"]["steps"] > 0 and found["small_enough"]
    assert gpu_training.main([f"--out={out}"]) == 2
