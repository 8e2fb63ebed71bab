"""Fine-tuning from the command line: every option in one run, resumed exactly; impossible ones refused."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch

import ann2snn
from ann2snn.config import RESUME_WITH, SampleConfig
from ann2snn.stages import finetune
from ann2snn.stages.finetune_run import SAMPLER_FIELDS
from tests.scripts import SAMPLING, check, four_blocks, script, train_flags
from tests.stages.test_bad_input import refused

EVERYTHING = [
    "--fine_tune", "--ft_method=bptt", "--ft_steps=2", "--ft_batch_size=4", "--ft_calibrate", "--ft_cache=1",
    "--ft_network_steps=3", "--ft_inputs=sampler", "--ft_granularity=layer", "--lr_decay=cosine", "--lr=1e-4",
    "--nosigned", "--ft_name=all", "--sample_step=0", "--num_threads=1", *SAMPLING,
]  # fmt: skip


def test_all_options_together_end_in_a_network_that_resumes_exactly(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    flags = [*EVERYTHING, f"--logdir={tmp_path}", "--gap_images=0"]
    out = check(script("SNN_ft.py", *flags, before=four_blocks))
    folder = tmp_path / "SNN_2bit_ft_all"
    summary = json.loads((folder / "finetune.json").read_text())
    assert summary["blocks"][-1]["block"] == "network" and summary["blocks"][-1]["steps"] == 3
    assert "network" in out and "prediction gap on 32 held-back images" in out
    assert summary["best_gap"] == min(summary["prediction_gap"])
    assert summary["identity"]["learn"] == ["weights", "thresholds", "charges"]
    net = ann2snn.load(folder / "model_best.pt")
    assert not net.spiking.signed and net.net.tail[1].charge.shape == ()
    whole = torch.load(folder / "ft_state.pt", weights_only=True)
    shutil.rmtree(folder)

    def before():
        four_blocks()
        original = finetune.tune_block

        def tune_block(name, *args):
            if name == "network":
                os.kill(os.getpid(), signal.SIGKILL)
            return original(name, *args)

        finetune.tune_block = tune_block

    assert script("SNN_ft.py", *flags, before=before).returncode == -signal.SIGKILL
    check(script("SNN_ft.py", *flags, before=four_blocks))
    resumed = torch.load(folder / "ft_state.pt", weights_only=True)
    assert whole["gaps"] == resumed["gaps"]
    assert all(torch.equal(value, resumed["ema_model"][name]) for name, value in whole["ema_model"].items())
    refused(script("SNN_ft.py", *flags, "--ft_method=proxy", "--ft_learn=weights"), "method=bptt", "--ft_name")
    image = script("evaluate.py", f"--logdir={tmp_path}", f"--eval_model_path={folder}/model_best.pt", "--sample_only",
                   "--num_images=2", "--burst=3", *SAMPLING)  # fmt: skip
    assert "2 images" in check(image)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ft_learn=colours"], ["--ft_learn=colours", "weights, thresholds, charges"]),
        (["--ft_learn=charges"], ["--ft_method=bptt"]),
        (["--ft_method=magic"], ["ft_method", "proxy"]),
        (["--ft_name=../up"], ["--ft_name", "letters"]),
        (["--ft_steps=0"], ["--ft_steps=0"]),
        (["--ft_network_steps=-1"], ["--ft_network_steps=-1"]),
        (["--ft_cache=-1"], ["--ft_cache=-1"]),
        (["--ft_method=bptt", "--ft_neuron_lr=0"], ["--ft_neuron_lr"]),
        (["--burst=0"], ["--burst=0"]),
        (["--burst=2", "--if_neuron=reference", "--stream_norm=per_step"], ["--burst=2", "bounded"]),
    ],
)
def test_impossible_options_are_refused(finished_run, flags, words):
    refused(script("SNN_ft.py", "--fine_tune", f"--logdir={finished_run[0]}", *flags, *SAMPLING), *words)


def test_every_setting_of_the_sampler_that_makes_inputs_is_kept():
    """Or a resumed run would be of two samplers. What is left is kept under names of their own, or draws no inputs."""
    fields = {field.name for field in dataclasses.fields(SampleConfig)}
    assert fields - set(SAMPLER_FIELDS.values()) == {"seed", "amp", "carry", "carry_steps"}
    assert set(SAMPLER_FIELDS) <= set(RESUME_WITH)
