"""SNN_ft.py --ft_method=tsm: from the folder of an SDDPM to one of an SDM."""

import json
import shutil
import signal

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.nets.sddpm import with_tsm
from tests.scripts import SAMPLING, check, script
from tests.stages.direct_runs import learned, pictures, same, tuning, weights
from tests.stages.test_bad_input import refused, snapshot
from tests.stages.test_parallel import distance
from tests.stages.test_resume import assert_same_run, signal_in_training


@pytest.fixture
def logdir(direct_runs, tmp_path):
    """A copy of the SDDPM's weights, in a folder of their own."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(direct_runs["sddpm"][0] / "ckpt.pt", folder)
    return folder


def test_an_sdm_has_a_run_folder_like_that_of_a_training(logdir):
    source = (logdir / "ckpt.pt").read_bytes()
    out = check(script("SNN_ft.py", *tuning(logdir, 3)))
    folder = logdir / "SDM_2T"
    assert f"{folder}/trained_snn.pt: sddpm, step 3" in out and (logdir / "ckpt.pt").read_bytes() == source
    for name in ("ckpt.pt", "cost.json", "raster.npz", "real.png", "log.jsonl", "images/SDDPM_T2.png"):
        assert (folder / name).exists(), name
    assert (logdir / "flagfile.finetune.txt").exists()
    net, start = ann2snn.load(folder / "trained_snn.pt"), with_tsm(ann2snn.load(logdir / "ckpt.pt"))
    assert net.config == start.config and net.config.tsm and net.spike_steps == 2
    moved = [name for name, value in learned(net).items() if not torch.equal(value, learned(start)[name])]
    factors = [name for name in learned(net) if name.endswith(".tsmp")]
    assert len(factors) > 20 and set(factors) <= set(moved), "every convolution's factors learn"
    assert torch.load(folder / "trained_snn.pt", weights_only=True)["stage"] == "sdm"
    assert torch.load(folder / "ckpt.pt", weights_only=True)["config"]["train"]["dataset_type"] == "fashion_mnist_10k"
    assert json.loads((folder / "cost.json").read_text())["reports"][0]["spiking"]["tsm"] is True
    check(script("evaluate.py", "--sample_only", f"--logdir={folder}", "--num_images=2", *SAMPLING))
    [settings] = folder.glob("generated/*/settings.json")
    assert settings.parent.name.startswith("sddpm_tsm_2steps_ddim3_")
    assert json.loads(settings.read_text())["direct"]["tsm"] and len(pictures(folder)) == 2


def test_a_step_that_hardly_moves_leaves_the_pretrained_network(logdir):
    """`--method` is another spelling; weights are inherited, not trained anew, and start without warm-up."""
    flags = tuning(logdir, 1, "--lr=1e-7", "--gen_images=0", "--gap_images=0")
    flags[flags.index("--ft_method=tsm")] = "--method=tsm"
    check(script("SNN_ft.py", *flags))
    source = with_tsm(ann2snn.load(logdir / "ckpt.pt"))
    tuned = ann2snn.load(logdir / "SDM_2T" / "ckpt.pt", weights="net")
    assert 0 < distance(learned(tuned), learned(source)) < 1e-6
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 17])
    tuned.load_state_dict(source.state_dict() | learned(tuned))  # running statistics apart: they follow the batch
    with torch.no_grad():
        assert distance({"": tuned(x, t)}, {"": source(x, t)}) < 0.05


def test_more_time_steps_than_the_sddpm_has(logdir):
    flags = tuning(logdir, 1, "--timestep=5", "--ft_name=long", "--gap_images=0", "--gen_images=0")
    check(script("SNN_ft.py", *flags))
    net = ann2snn.load(logdir / "SDM_5T_long" / "trained_snn.pt")
    assert net.spike_steps == 5 and net.conv.tsmp.shape == (5, 1, 1, 1, 1)
    assert [path.name for path in logdir.glob("SDM*")] == ["SDM_5T_long"]


@pytest.mark.slow
def test_an_interrupted_tuning_ends_as_if_it_had_not_been(logdir):
    flags = tuning(logdir, 4, "--gap_images=0", "--gen_images=0")
    check(script("SNN_ft.py", *flags, "--ft_name=whole"))
    flags += ["--ft_name=stopped"]
    done = script("SNN_ft.py", *flags, before=signal_in_training(2, signal.SIGINT))
    stopped, whole = (logdir / f"SDM_2T_{name}" for name in ("stopped", "whole"))
    assert done.returncode == 130 and not (stopped / "trained_snn.pt").exists(), done.stderr
    assert "resuming" in check(script("SNN_ft.py", *flags))
    assert_same_run(whole, stopped)
    before = (stopped / "ckpt.pt").read_bytes()
    assert "nothing left to train" in check(script("SNN_ft.py", *flags))
    assert (stopped / "ckpt.pt").read_bytes() == before
    assert same(weights(stopped / "trained_snn.pt"), weights(whole / "trained_snn.pt"))
    refused(script("SNN_ft.py", *flags, "--lr=0.5"), "cannot resume", "lr=0.01", "lr=0.5")
    raw = torch.load(logdir / "ckpt.pt", weights_only=True)
    further = {name: value + (name == "conv.weight") for name, value in raw["ema_model"].items()}
    checkpoint.save(logdir / "ckpt.pt", raw | {"ema_model": further})  # the SDDPM was trained on meanwhile
    refused(script("SNN_ft.py", *flags), f"{stopped}/ckpt.pt: it was begun with other weights", "--ft_name")


def test_another_network_than_the_folders_own_is_tuned_by_its_path(direct_runs, tmp_path):
    model = f"--eval_model_path={direct_runs['sddpm'][0]}/trained_snn.pt"
    check(script("SNN_ft.py", *tuning(tmp_path / "new", 1, model, "--gap_images=0", "--gen_images=0")))
    assert ann2snn.load(tmp_path / "new" / "SDM_2T" / "ckpt.pt").config.tsm


def test_what_cannot_be_tuned_is_refused_in_one_line(direct_runs, finished_run, logdir):
    fsddim, ann = direct_runs["fsddim"][0], finished_run[0]
    before = snapshot(fsddim), snapshot(ann), snapshot(logdir)
    refused(script("SNN_ft.py", *tuning(fsddim, 1)), "ckpt.pt", "--arch=sddpm", "--arch=fsddim")
    refused(script("SNN_ft.py", *tuning(ann, 1)), "ckpt.pt", "--arch=sddpm", "--arch=unet")
    refused(script("SNN_ft.py", *tuning(ann, 1, f"--eval_model_path={ann}/converted_snn.pt")), "--arch=sddpm")
    refused(script("SNN_ft.py", *tuning(logdir / "none", 1)), "no checkpoint at")
    for flag, words in {
        "--ft_steps=0": ["--ft_steps=0"],
        "--timestep=0": ["--timestep=0"],
        "--timestep=257": ["--timestep=257", "256"],
        "--ft_name=../../outside": ["--ft_name=../../outside", "letters"],
        "--threshold=0.9": ["--threshold=0.9", "trained with 1.0"],
        "--ch=8": ["--ch=8", "with 4"],
        "--corrections=init": ["--corrections=init", "with none"],
        "--sampler=fsddim": ["--sampler=fsddim", "--arch=fsddim"],
        "--loss_type=scl": ["--loss_type=scl", "--arch=sddpm"],
        "--accumulate=3": ["--accumulate=3"],
        "--dataset_type=cifar10": ["cifar10"],
    }.items():
        refused(script("SNN_ft.py", *tuning(logdir, 1), flag), *words)
    assert not list(logdir.glob("SDM*")) and not (logdir.parent / "outside").exists()
    assert (snapshot(fsddim), snapshot(ann), snapshot(logdir)) == before


def test_an_sdm_is_not_made_of_an_sdm(logdir):
    flags = ["--gap_images=0", "--gen_images=0"]
    check(script("SNN_ft.py", *tuning(logdir, 1, *flags)))
    done = script("SNN_ft.py", *tuning(logdir / "SDM_2T", 1, *flags))
    refused(done, f"{logdir}/SDM_2T/ckpt.pt", "factor per time step already")


def test_no_conversion_for_what_spikes_already(direct_runs):
    before = {arch: snapshot(run[0]) for arch, run in direct_runs.items()}
    for arch, (folder, _) in direct_runs.items():
        for name, action in (("SNN_conversion.py", "--eval"), ("SNN_ft.py", "--fine_tune")):
            refused(script(name, action, f"--logdir={folder}", *SAMPLING), f"--arch={arch}", "spiking already")
    assert {arch: snapshot(run[0]) for arch, run in direct_runs.items()} == before
