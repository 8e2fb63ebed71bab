"""Settings that make no directly trained network end in one line that names them, before anything is written."""

import shutil

import pytest

import ann2snn
from ann2snn.config import SampleConfig
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.run.folder import RunFolder
from ann2snn.stages import direct
from tests.scripts import check, script, train_flags
from tests.stages.direct_runs import training
from tests.stages.test_bad_input import refused, snapshot


@pytest.mark.parametrize(
    ("arch", "flags", "words"),
    [
        ("sddpm", ["--bit=2"], ["--bit=2", "--arch=sddpm"]),
        ("fsddim", ["--weight_bit=2"], ["--weight_bit=2", "--arch=fsddim"]),
        ("sddpm", ["--spike_driven"], ["--spike_driven=True", "--arch=sddpm"]),
        ("sddpm", ["--norm=plain"], ["--norm=plain", "--arch=sddpm"]),
        ("sddpm", ["--decay=0.5"], ["--decay=0.5", "--arch=sddpm"]),
        ("fsddim", ["--tsm"], ["--tsm=True", "--arch=fsddim"]),
        ("fsddim", ["--corrections=init"], ["--corrections=init", "--arch=fsddim"]),
        ("sddpm", ["--corrections=init,colour"], ["--corrections=colour,init", "shortcut", "each once"]),
        ("sddpm", ["--corrections=init,init"], ["--corrections=init,init", "each once"]),
        ("sddpm", ["--loss_type=scl"], ["--loss_type=scl", "--arch=sddpm"]),
        ("fsddim", ["--image_loss_weight=-1"], ["loss weights"]),
        ("sddpm", ["--process=cld"], ["--process=cld", "--process=vp"]),
        ("fsddim", ["--process=blur", "--mean_type=epsilon", "--beta_schedule=linear"], ["--process=blur"]),
        ("sddpm", ["--timestep=0"], ["--timestep=0", "1 to 256"]),
        ("sddpm", ["--timestep=1000000000"], ["--timestep=1000000000", "256"]),
        ("sddpm", ["--threshold=-1"], ["--threshold=-1"]),
        ("fsddim", ["--threshold=0"], ["--threshold=0"]),
        ("fsddim", ["--threshold=nan"], ["--threshold=nan"]),
        ("fsddim", ["--decay=1.5"], ["--decay=1.5"]),
        ("fsddim", ["--norm=batch"], ["--norm", "plain"]),
        ("sddpm", ["--surrogate=square"], ["--surrogate", "triangle"]),
        ("sddpm", ["--ch=5"], ["--ch=5"]),
        ("fsddim", ["--img_size=7"], ["--img_size=7", "multiple of 2"]),
        ("sddpm", ["--sampler=fsddim"], ["--sampler=fsddim", "--arch=fsddim"]),
        ("fsddim", ["--sampler=fsddim", "--sampler_steps=21"], ["--sampler_steps=21", "20"]),
        ("sddpm", ["--arch=spiking"], ["arch", "fsddim"]),
        ("sddpm", ["--accumulate=3"], ["--accumulate=3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_settings_that_make_no_network(tmp_path, arch, flags, words):
    logdir = tmp_path / "run"
    refused(script("SNN_train.py", *training(arch, logdir, 2), *flags), *words)
    assert not logdir.exists()


@pytest.mark.parametrize(
    "flag", ["--timestep=4", "--threshold=0.9", "--tsm", "--recompute", "--nosoft_reset", "--norm=plain"]
)
def test_a_network_to_convert_has_none_of_these_settings(tmp_path, flag):
    name = flag.split("=")[0].replace("--noso", "--so")
    refused(script("ANN_train.py", *train_flags(tmp_path / "run", 2), flag), f"{name}=", "--arch=unet")
    assert not (tmp_path / "run").exists()


def test_each_network_has_its_script(tmp_path):
    refused(script("SNN_train.py", *train_flags(tmp_path / "run", 2)), "--arch=unet", "ANN_train.py")
    refused(script("SNN_train.py", *train_flags(tmp_path / "run", 2), "--arch=attention", "--bit=32"), "ANN_train.py")
    for arch in ("sddpm", "fsddim"):
        refused(script("ANN_train.py", *training(arch, tmp_path / "run", 2)), f"--arch={arch}", "SNN_train.py")
    refused(script("SNN_train.py", f"--logdir={tmp_path}/run"), "nothing to do", "--train")
    assert not (tmp_path / "run").exists()


def test_flags_of_the_published_files_that_say_nothing_here_are_taken(tmp_path):
    """--attn names no level of a network without attention, --bit=32 asks for nothing."""
    flags = ["--attn=1", "--attn=2", "--bit=32", "--norm_groups=7", "--gen_images=0", "--gap_images=0", "--recompute"]
    check(script("SNN_train.py", *training("sddpm", tmp_path, 1), *flags))


@pytest.mark.parametrize(
    ("arch", "flag", "words"),
    [
        ("sddpm", "--ch=8", ["--ch=8", "with 4"]),
        ("sddpm", "--timestep=4", ["--timestep=4", "with 2"]),
        ("sddpm", "--corrections=init,readout", ["--corrections=init,readout", "with none"]),
        ("sddpm", "--tsm", ["--tsm=True", "with False"]),
        ("sddpm", "--surrogate=triangle", ["--surrogate=triangle", "with atan"]),
        ("sddpm", "--arch=fsddim", ["--arch=fsddim", "with sddpm"]),
        ("fsddim", "--norm=scaled", ["--norm=scaled", "with plain"]),
        ("fsddim", "--decay=0.25", ["--decay=0.25", "with 0.8"]),
        ("fsddim", "--soft_reset", ["--soft_reset=True", "with False"]),
        ("fsddim", "--mean_type=epsilon", ["--mean_type=epsilon", "with v"]),
        ("fsddim", "--bit=2", ["--bit=2", "with 32"]),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint_names_both_values(direct_runs, arch, flag, words):
    logdir = direct_runs[arch][0]
    before = snapshot(logdir)
    sampling = ["--sampler=ddim", "--sampler_steps=3"]
    for name, action in (("evaluate.py", "--sample_only"), ("SNN_train.py", "--eval")):
        refused(script(name, action, f"--logdir={logdir}", flag, *sampling), *words)
    assert snapshot(logdir) == before


@pytest.mark.parametrize(
    ("arch", "flag", "words"),
    [
        ("sddpm", "--timestep=4", ["spike_steps=2", "spike_steps=4"]),
        ("sddpm", "--threshold=0.5", ["threshold=1.0", "threshold=0.5"]),
        ("sddpm", "--corrections=init", ["corrections=()", "corrections=('init',)"]),
        ("sddpm", "--dropout=0.3", ["dropout=0.1", "dropout=0.3"]),
        (
            "fsddim",
            "--reconstruction_loss_weight=2",
            ["reconstruction_loss_weight=1.0", "reconstruction_loss_weight=2.0"],
        ),
        ("fsddim", "--norm=scaled", ["norm=plain", "norm=scaled"]),
        ("fsddim", "--noresume", ["exists", "--noresume"]),
    ],
)
def test_other_settings_do_not_continue_a_training(direct_runs, tmp_path, arch, flag, words):
    shutil.copy(direct_runs[arch][0] / "ckpt.pt", tmp_path)
    before = (tmp_path / "ckpt.pt").read_bytes()
    refused(script("SNN_train.py", *training(arch, tmp_path, 6), flag), *words)
    assert (tmp_path / "ckpt.pt").read_bytes() == before and not (tmp_path / "trained_snn.pt").exists()


def test_a_run_folder_keeps_to_one_kind_of_network(direct_runs, finished_run, tmp_path):
    shutil.copy(direct_runs["sddpm"][0] / "ckpt.pt", tmp_path)
    refused(script("SNN_train.py", *training("fsddim", tmp_path, 6)), "arch=sddpm", "arch=fsddim")
    refused(script("ANN_train.py", *train_flags(tmp_path, 6)), "arch=sddpm", "arch=unet")
    shutil.copy(finished_run[0] / "ckpt.pt", tmp_path)
    refused(script("SNN_train.py", *training("sddpm", tmp_path, 8)), "arch=unet", "arch=sddpm")


def test_the_order_of_corrections_says_nothing(tmp_path):
    flags = ["--gen_images=0", "--gap_images=0"]
    check(script("SNN_train.py", *training("sddpm", tmp_path, 1, "--corrections=readout,init", *flags)))
    sampling = ["--sampler=ddim", "--sampler_steps=2", "--num_images=1"]
    check(script("evaluate.py", "--sample_only", f"--logdir={tmp_path}", "--corrections=readout,init", *sampling))


def test_what_is_exported_must_be_a_spiking_network(tmp_path):
    net = ann2snn.build_unet(bit=2, image_size=8, ch=4, ch_mult=(1, 2), num_res_blocks=1, norm_groups=2)
    ann2snn.save(net, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt is no directly trained spiking network: remove it"):
        direct.export(RunFolder(tmp_path), SampleConfig("ddim", 2), ALONE, gap_images=1, grid_images=1, batch_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
