"""The command line is a promise: the published flagfiles parse and mean what they say, in every stage."""

import dataclasses
import json

import pytest

from ann2snn.cli import build, flags, settings
from ann2snn.config import ImageSize
from tests.scripts import ROOT, check, script

PUBLISHED = {
    "train_ANN/CIFAR10.txt": {"bit": 3.0, "train": True, "num_workers": 0, "total_steps": 800000, "eval": False},
    "SNN_convert/CIFAR10_snn.txt": {"bit": 2.0, "eval": True, "sample_size": 64, "pic_or_not": False},
    "SNN_ft/CIFAR10_snnft.txt": {"bit": 3.0, "fine_tune": True, "lr": 1e-6, "ft_steps": 20000, "save_step": 10000},
    "SNN_evaluate/CIFAR10_snn.txt": {"bit": 2.0, "eval": True, "num_images": 50000},
}
DEFAULTS = {
    "ch": 128, "ch_mult": [1, 2, 2, 2], "attn": [1], "num_res_blocks": 2, "dropout": 0.1, "bit": 8.0,
    "beta_1": 1e-4, "beta_T": 0.02, "T": 1000, "mean_type": "epsilon", "var_type": "fixedlarge", "lr": 2e-4,
    "dataset_type": "cifar10", "grad_clip": 1.0, "total_steps": 800000, "warmup": 5000, "ft_steps": 10000,
    "ft_batch_size": 64, "img_size": ImageSize(32, 32), "batch_size": 128, "num_workers": 4, "ema_decay": 0.9999,
    "parallel": False, "logdir": "./logs/DDPM_CIFAR10_EPS", "sample_size": 64, "sample_step": 1000, "eval_step": 0,
    "num_images": 50000, "fid_use_torch": False, "fid_cache": "./stats/cifar10.train.npz", "gen_images": 64,
    "pic_or_not": False, "train": False, "eval": False, "fine_tune": False,
}  # fmt: skip


@pytest.fixture
def table():
    """The flag table, defined for this test alone."""
    before = set(flags.FLAGS)
    flags.define()
    yield flags.FLAGS
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def test_defaults_are_the_published_ones(table):
    table(["x"])
    assert {name: table[name].value for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flagfile_parses_and_configures_every_stage(table, name):
    table(["x", f"--flagfile={ROOT}/config/{name}"])
    assert {flag: table[flag].value for flag in PUBLISHED[name]} == PUBLISHED[name]
    assert table.ch_mult == [1, 2, 2, 2]
    network, diffusion = settings.unet_config(in_channels=3), settings.diffusion_config()
    assert (network.ch, network.ch_mult, network.num_res_blocks, network.bits) == (128, (1, 2, 2, 2), 2, int(table.bit))
    assert (diffusion.diffusion_steps, diffusion.beta_1, diffusion.beta_T) == (1000, 1e-4, 0.02)
    build.train_config(), build.sample_config().check_fits(diffusion), build.spiking_config()


# Those of `python -m ann2snn.toy` are arguments of another program.
FLAGFILES = sorted(path for path in (ROOT / "config").glob("*/*.txt") if path.parent.name != "toy")


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_shipped_flagfile_is_valid(table, path):
    table(["x", f"--flagfile={path}"])
    settings.network_config(in_channels=1), build.train_config()
    build.sample_config().check_fits(settings.diffusion_config())
    build.spiking_config(schedule="stream")


DDPM_TORCH = {
    "cifar10": {
        "dataset_type": "cifar10", "dropout": 0.1, "var_type": "fixedlarge", "lr": 2e-4, "batch_size": 128,
        "total_steps": 795600, "flip": True,
    },
    "celeba": {
        "dataset_type": "celeba", "dropout": 0.0, "var_type": "fixedsmall", "lr": 2e-5, "batch_size": 128,
        "total_steps": 949200, "flip": True,
    },
    "celebahq": {
        "dataset_type": "folder", "dropout": 0.0, "var_type": "fixedsmall", "lr": 2e-5, "batch_size": 64,
        "total_steps": 561600, "flip": None,
    },
}  # fmt: skip
DDPM_TORCH_OF_ALL = {
    "arch": "attention", "num_res_blocks": 2, "T": 1000, "beta_1": 1e-4, "beta_T": 0.02, "mean_type": "epsilon",
    "beta_schedule": "linear", "loss_type": "mse", "warmup": 5000, "grad_clip": 1.0, "ema_decay": 0.9999,
    "ema_warmup": True, "train": True, "lr_decay": "none",
}  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), [("cifar10", 35746307), ("celeba", 35746307), ("celebahq", 113673219)])
def test_flagfiles_of_ddpm_torch_describe_its_networks(table, name, parameters):
    import torch

    from ann2snn.nets.architecture import build_network

    table(["x", f"--flagfile={ROOT}/config/ddpm_torch/train_{name}.txt"])
    wanted = DDPM_TORCH[name] | DDPM_TORCH_OF_ALL
    assert {flag: table[flag].value for flag in wanted} == wanted
    trained = settings.network_config(in_channels=3)
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(trained).parameters()) == parameters
    training, logdir = settings.diffusion_config(), table.logdir
    table.unparse_flags()
    for flag in table:
        table[flag].unparse()
    table(["x", f"--flagfile={ROOT}/config/ddpm_torch/evaluate_{name}.txt"])
    assert table.eval and table.precision_recall and table.pr_k == 3 and table.num_images == 50000
    assert settings.diffusion_config() == training and table.logdir == logdir
    # What the second file says of the network is what the first trained: the stage compares nothing else.
    stored = {"arch", *trained.to_dict()}
    given = {field: value for field, value in settings.expected_fields().items() if field in stored}
    assert {field: tuple(v) if isinstance(v, list) else v for field, (_, v) in given.items()} == {
        field: getattr(trained, field) for field in given
    }
    assert {"arch", "ch_mult", "attn", "image_size"} <= given.keys()


# What the published programs say of themselves, by data set.
SDDPM_OF_ALL = {
    "arch": "sddpm", "ch": 128, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2, "timestep": 4, "dropout": 0.1,
    "T": 1000, "beta_1": 1e-4, "beta_T": 0.02, "beta_schedule": "linear", "mean_type": "epsilon", "lr": 2e-4,
    "var_type": "fixedlarge", "loss_type": "mse", "lr_decay": "none", "grad_clip": 1.0, "batch_size": 32,
    "total_steps": 500001, "warmup": 5000, "ema_decay": 0.9999, "ema_warmup": False, "sampler": "ddpm",
    "sample_step": 5000, "sample_size": 64, "seed": 42, "train": True, "corrections": None, "tsm": False,
    "threshold": None, "surrogate": None,
}  # fmt: skip
FSDDIM_OF_ALL = {
    "arch": "fsddim", "ch": 128, "ch_mult": [1, 2, 3, 4], "num_res_blocks": 2, "dropout": 0.0, "norm": "plain",
    "T": 1000, "beta_schedule": "cosine", "mean_type": "v", "loss_type": "scl", "image_loss_weight": 1.0,
    "spike_loss_weight": 0.0, "reconstruction_loss_weight": 1.0, "lr_decay": "none", "warmup": 0, "ema_decay": 0.0,
    "batch_size": 256, "accumulate": 1, "num_images": 1000, "sample_size": 16, "sampler": "fsddim",
    "sampler_steps": 1000, "amp": True, "train": True, "decay": None, "soft_reset": None, "detach_reset": None,
    "threshold": None, "surrogate": None,
}  # fmt: skip
#: Steps of an epoch: 60,000 and 50,000 images in batches of 256; of CelebA 200.
DIRECT = {
    "sddpm_cifar10": SDDPM_OF_ALL | {"dataset_type": "cifar10", "img_size": ImageSize(32, 32), "flip": True},
    "sddpm_celeba": SDDPM_OF_ALL | {"dataset_type": "celeba", "img_size": ImageSize(64, 64), "flip": True},
    "sddpm_fashion_mnist": SDDPM_OF_ALL
    | {"dataset_type": "fashion_mnist", "img_size": ImageSize(32, 32), "flip": False},
}
for _name, _size, _flip, _lr, _steps, _epoch in (
    ("mnist", 32, False, 1e-3, 8, 235),
    ("fashion_mnist", 32, False, 1e-3, 8, 235),
    ("cifar10", 32, True, 5e-4, 8, 196),
    ("celeba", 64, True, 5e-4, 4, 200),
):
    DIRECT[f"fsddim_{_name}"] = FSDDIM_OF_ALL | {
        "dataset_type": _name, "img_size": ImageSize(_size, _size), "flip": _flip, "lr": _lr, "timestep": _steps,
        "total_steps": 1500 * _epoch, "save_step": _epoch, "sample_step": 10 * _epoch, "eval_step": 150 * _epoch,
    }  # fmt: skip
#: By architecture and channels of the images.
PARAMETERS = {("sddpm", 1): 66691725, ("sddpm", 3): 66696413, ("fsddim", 1): 52536705, ("fsddim", 3): 52540547}


def parameters_of(network) -> int:
    import torch

    from ann2snn.nets.architecture import build_network

    with torch.device("meta"):
        return sum(p.numel() for p in build_network(network).parameters())


@pytest.mark.parametrize("name", DIRECT)
def test_flagfiles_of_directly_trained_networks_carry_the_published_settings(table, name):
    from ann2snn.diffusion.process import check_sampling

    table(["x", f"--flagfile={ROOT}/config/SNN_train/{name}.txt"])
    assert {flag: table[flag].value for flag in DIRECT[name]} == DIRECT[name]
    channels = 1 if "mnist" in name else 3
    network, diffusion, sample = settings.network_config(channels), settings.diffusion_config(), build.sample_config()
    assert parameters_of(network) == PARAMETERS[network.arch, channels]
    assert network.threshold == 1 and sample.calls(diffusion) == 1000
    if network.arch == "sddpm":
        assert network.corrections == () and network.surrogate == "atan" and network.rule.decay == 1
        assert sample.clip
    else:
        rule = network.rule
        assert (rule.decay, rule.strict, rule.soft_reset, rule.detach_reset) == (0.8, True, False, True)
        assert network.surrogate == "triangle" and not sample.clip
        assert table.grad_clip >= 1e6, "as good as none"
    check_sampling(diffusion, network.image_size, sample, spike_steps=network.spike_steps)
    assert build.train_config().batch_size == table.batch_size


def test_the_flagfile_of_sdm_tunes_the_published_sddpm(table):
    """8 time steps from 4, batch 32, the author's 200k steps, and the published sampler: 50 calls, none at t = 0."""
    from ann2snn.diffusion.process import make_process
    from ann2snn.diffusion.samplers import SAMPLERS
    from ann2snn.diffusion.samplers.registry import options_of

    table(["x", f"--flagfile={ROOT}/config/SNN_train/sddpm_cifar10.txt"])
    source, logdir = settings.network_config(3), table.logdir
    table.unparse_flags()
    for flag in table:
        table[flag].unparse()
    table(["x", f"--flagfile={ROOT}/config/SNN_train/sdm_cifar10.txt"])
    wanted = {"fine_tune": True, "ft_method": "tsm", "timestep": 8, "ft_batch_size": 32, "ft_steps": 200_000}
    wanted |= {"lr": 2e-4, "grad_clip": 1.0, "logdir": logdir, "seed": 42, "lr_decay": "none"}
    assert {flag: table[flag].value for flag in wanted} == wanted
    sample, diffusion = build.sample_config(), settings.diffusion_config()
    times = SAMPLERS["ddim"].times(make_process(diffusion, 32), **options_of(sample))
    assert times == list(range(999, 0, -20)) and sample.calls(diffusion) == len(times) == 50
    given = {field: value for field, (_, value) in settings.expected_fields().items()}
    assert {field: value for field, value in given.items() if getattr(source, field, value) != value} == {
        "spike_steps": 8
    }
    tuned = dataclasses.replace(source, tsm=True, spike_steps=8)
    assert parameters_of(tuned) == 66_696_949 == parameters_of(source) + 67 * 8


@pytest.mark.slow
def test_published_conversion_flagfile_runs_on_a_matching_run(tmp_path):
    """Unknown-to-the-stage flags included: pic_or_not, eval_model_path and sample_size belong to other stages."""
    import torch

    from ann2snn.config import UNetConfig
    from ann2snn.nets import UNet

    logdir = tmp_path / "run"
    logdir.mkdir()
    net = UNet(UNetConfig(ch=128, bits=2))
    torch.save({"ema_model": net.state_dict(), "net_model": net.state_dict()}, logdir / "ckpt.pt")
    flagfile = f"--flagfile={ROOT}/config/SNN_convert/CIFAR10_snn.txt"
    check(script("SNN_conversion.py", flagfile, f"--logdir={logdir}", "--gen_images=0", "--gap_images=0"))
    assert (logdir / "converted_snn.pt").is_file()
    target = f"--eval_model_path={logdir}/converted_snn.pt"
    sampling = ["--sampler=ddim", "--sampler_steps=1", "--num_images=1", "--sample_only", "--pic_or_not"]
    check(script("evaluate.py", flagfile, f"--logdir={logdir}", target, *sampling))
    [picture], [folder] = (logdir / "images").glob("*.png"), [p for p in (logdir / "generated").iterdir() if p.is_dir()]
    assert picture.stem == folder.name
    [settings] = list(logdir.glob("generated/*/settings.json"))
    assert json.loads(settings.read_text())["bits"] == 2


@pytest.mark.parametrize("name", ["ANN_train.py", "SNN_train.py", "SNN_conversion.py", "SNN_ft.py", "evaluate.py"])
def test_help_shows_the_command_and_the_flags_with_their_defaults(name):
    done = script(name, "--help")
    assert done.returncode == 0 and f"python {name} --flagfile" in done.stdout
    for flag in [*DEFAULTS, "schedule", "settle_steps", "inception_weights", "sample_only", "device"]:
        assert f"--{flag}: " in done.stdout or f"--[no]{flag}: " in done.stdout, flag
    assert "(default 1,2,2,2)" in done.stdout and "Spiking network:" in done.stdout


def test_help_table_covers_the_whole_flag_table(table):
    grouped = [flag for group in flags.HELP.values() for flag in group]
    assert len(grouped) == len(set(grouped)) and set(DEFAULTS) < set(grouped)
