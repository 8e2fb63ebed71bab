"""Every process and every sampler, from the command line, for the ANN and for the network converted from it."""

import json

import pytest
import torch

import ann2snn
from ann2snn.config import IMAGE_SAMPLERS, SDE_SAMPLERS
from tests.scripts import check, four_blocks, processes, script, train_flags
from tests.stages.test_bad_input import refused
from tests.stages.test_parallel import CLOSE, distance, images, state
from tests.stages.test_resume import assert_same_run

SDE = ["--sampler=gddim", "--sampler_steps=5", "--sampler_order=1"]


@pytest.fixture(scope="module", params=["cld", "blur"])
def trained(request, tmp_path_factory):
    """(process, logdir) after training and conversion."""
    logdir = tmp_path_factory.mktemp(request.param)
    flags = [f"--process={request.param}", *SDE]
    check(script("ANN_train.py", *train_flags(logdir, 6, "--sample_step=6", "--sample_size=4", *flags)))
    check(script("SNN_conversion.py", "--eval", f"--logdir={logdir}", "--gen_images=2", "--gap_images=1", *SDE))
    return request.param, logdir


def test_other_processes_train_convert_and_sample(trained):
    process, logdir = trained
    net = ann2snn.load(logdir / "ckpt.pt")
    assert net.diffusion.process == process and net.diffusion.linear_first == (process == "cld")
    assert net.in_channels == (2 if process == "cld" else 1)
    exact, stream, *_ = json.loads((logdir / "gap.json").read_text())["reports"]
    assert exact["label"] == "layer_sync" and exact["blocks"][-1]["error"] < 1e-12
    assert stream["label"] == "stream" and stream["blocks"][-1]["error"] > 1e-6
    pictures = ann2snn.sample(net, 2, sampler="gddim", steps=4, order=1)
    assert pictures.shape == (2, 1, 8, 8)
    snn = ann2snn.convert(net.double(), schedule="layer_sync")
    assert torch.equal(
        ann2snn.sample(snn, 2, sampler="gddim", steps=4, order=1),
        ann2snn.sample(net, 2, sampler="gddim", steps=4, order=1),
    )


@pytest.mark.parametrize(
    "flags",
    [
        SDE,
        ["--sampler=euler", "--sampler_steps=5", "--eta=1"],
        ["--sampler=gddim", "--sampler_steps=6", "--sampler_order=0", "--eta=0.5", "--nodenoise"],
    ],
)
@pytest.mark.parametrize("network", ["ckpt.pt", "converted_snn.pt"])
def test_evaluate_generates_with_every_option(trained, tmp_path, flags, network):
    process, logdir = trained
    out = check(
        script(
            "evaluate.py",
            "--sample_only",
            f"--logdir={tmp_path}",
            f"--eval_model_path={logdir}/{network}",
            "--num_images=3",
            *flags,
        )
    )
    assert "3 images" in out and len(list(tmp_path.glob("generated/*/*.png"))) == 3


@pytest.mark.parametrize("trained", ["cld", pytest.param("blur", marks=pytest.mark.slow)], indirect=True)
def test_fine_tuning_and_resume_work_on_other_processes(trained, tmp_path):
    process, logdir = trained
    flags = ["--fine_tune", f"--logdir={logdir}", "--ft_steps=1", "--ft_batch_size=4", "--gap_images=0", *SDE]
    assert "prediction gap" in check(script("SNN_ft.py", *flags, "--sample_step=0", before=four_blocks))
    halves = tmp_path / "halves"
    for steps in (3, 6):
        extra = [f"--process={process}", "--sample_step=6", "--sample_size=4", *SDE]
        check(script("ANN_train.py", *train_flags(halves, steps, *extra)))
    assert_same_run(logdir, halves)
    two = tmp_path / "two"
    for done in processes(2, "ANN_train.py", *train_flags(two, 6, f"--process={process}", *SDE)):
        check(done)
    assert distance(state(two / "ckpt.pt"), state(logdir / "ckpt.pt")) < CLOSE


@pytest.mark.parametrize("sampler", [*IMAGE_SAMPLERS, *SDE_SAMPLERS])
def test_every_sampler_runs_on_a_ddpm_network_and_its_spiking_one(finished_run, tmp_path, sampler):
    logdir = finished_run[0]
    common = ["--sample_only", f"--logdir={tmp_path}", "--num_images=3", f"--sampler={sampler}"]
    common += ["--sampler_steps=4"] * (sampler != "ddpm")
    common += ["--analytic_images=8", "--dataset_type=fashion_mnist_10k"]
    for network in ("ckpt.pt", "converted_snn.pt"):
        (tmp_path / network).write_bytes((logdir / network).read_bytes())
        flags = [*common, f"--eval_model_path={tmp_path}/{network}"]
        assert "3 images" in check(script("evaluate.py", *flags))
    statistics = list(tmp_path.glob("*.npz"))
    assert len(statistics) == (2 if sampler == "analytic_dpm" else 0), "one for each network, beside its checkpoint"
    if sampler == "analytic_dpm":
        again = check(script("evaluate.py", *common, f"--eval_model_path={tmp_path}/ckpt.pt", "--num_images=4"))
        assert "noise statistics" not in again, "measured once"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sampler=dpmpp", "--sampler_steps=2", "--sampler_order=3"], ["order"]),
        (["--sampler=ddim", "--sampler_steps=51"], ["--sampler_steps=51", "50"]),
        (["--sampler=gddim", "--sampler_steps=3", "--sampler_order=3"], ["order=3"]),
        (["--sampler=gddim", "--eta=1"], ["lambda=0"]),
        (["--sampler=ddim", "--corrector=pec"], ["--corrector=pec", "gddim"]),
        (["--sampler=ddpm", "--nodenoise"], ["--denoise=False"]),
        (["--sampler=dpmpp", "--skip_type=sddpm"], ["sddpm"]),
        (["--sampler=gddim", "--sampler_order=4"], ["--sampler_order=4"]),
        (["--sampler=heun", "--eta=0.5"], ["--eta=0.5: --sampler=heun", "only ddim, gddim and euler"]),
        (["--sampler=ddim", "--grid_power=3"], ["--grid_power=3", "only gddim and euler"]),
        (["--sampler=ddim", "--sampler_order=3"], ["--sampler_order=3: --sampler=ddim"]),
    ],
)
def test_samplers_that_do_not_fit_are_refused_before_anything_is_done(finished_run, tmp_path, flags, words):
    model = f"--eval_model_path={finished_run[0]}/ckpt.pt"
    refused(script("evaluate.py", "--sample_only", f"--logdir={tmp_path}", model, "--num_images=2", *flags), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--process=cld", "--sampler=ddim"], ["--sampler=ddim", "gddim"]),
        (["--process=blur", *SDE, "--mean_type=v"], ["--process=blur", "--mean_type=v"]),
        (["--process=cld", *SDE, "--beta_schedule=cosine"], ["--beta_schedule=cosine"]),
        (["--cld_factor=L"], ["--cld_factor=L"]),
        (["--linear_first"], ["--linear_first", "--process=cld"]),
        (["--process=cld", "--cld_factor=L", "--linear_first", *SDE], ["--linear_first"]),
        (["--process=cld", *SDE, "--loss_type=kl"], ["--loss_type=kl"]),
        (["--beta_schedule=jsd"], ["jsd", "xstart"]),
    ],
)
def test_processes_that_cannot_be_trained_are_refused(tmp_path, flags, words):
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 2, *flags)), *words)


@pytest.mark.parametrize("flags", [["--mean_type=v", "--beta_schedule=cosine"], ["--loss_type=kl"]])
def test_predictions_schedules_and_losses_reach_training(tmp_path, flags):
    check(script("ANN_train.py", *train_flags(tmp_path, 2, *flags)))
    refused(script("ANN_train.py", *train_flags(tmp_path, 4)), "cannot resume")
    assert len(images(tmp_path)) == 1  # real.png
