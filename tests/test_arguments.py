"""Arguments of the Python API are checked as flags are; numpy's scalars are numbers."""

import math

import numpy as np
import pytest
import torch

import ann2snn
from ann2snn import DiffusionConfig, SampleConfig, SpikingConfig, UserError
from ann2snn.checkpoints import checkpoint
from ann2snn.config import LIMITS, TrainConfig
from tests.helpers import assert_equal, random_ann

SHAPE = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "image_size": 4}


@pytest.fixture(scope="module")
def net():
    return random_ann(diffusion_steps=10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, ["n=0", "1 to"]),
        ({"n": -3}, ["n=-3", "1 to"]),
        ({"n": 2.5}, ["n=2.5", "whole"]),
        ({"n": "4"}, ["n=4", "whole"]),
        ({"n": True}, ["n=True", "whole"]),
        ({"batch_size": -1}, ["batch_size=-1", "1 to"]),
        ({"batch_size": 0}, ["batch_size=0", "1 to"]),
        ({"batch_size": float("nan")}, ["batch_size=nan", "whole"]),
        ({"steps": 0}, ["steps=0", "1 to"]),
        ({"steps": "ten"}, ["steps=ten", "whole"]),
        ({"steps": 11}, ["steps=11", "10 diffusion steps"]),
        ({"seed": -1}, ["seed=-1", "0 to"]),
        ({"seed": 2**32}, ["seed", "0 to"]),
        ({"seed": 0.5}, ["seed=0.5", "whole"]),
        ({"eta": 2.0}, ["eta=2.0", "0 (deterministic) to 1"]),
        ({"eta": float("nan")}, ["eta=nan", "finite"]),
        ({"eta": "much"}, ["eta=much", "finite number"]),
        ({"clip": "no"}, ["clip", "True or False"]),
        ({"amp": 1}, ["amp=1", "True or False"]),
        ({"sampler": "ddmi"}, ["sampler=ddmi", "ddim"]),
        ({"skip": "even"}, ["skip_type=even", "uniform"]),
        ({"order": 7, "sampler": "dpmpp"}, ["order=7", "1 to 3"]),
        ({"grid_power": -1.0, "sampler": "gddim"}, ["grid_power=-1.0"]),
        ({"ddim_epsilon": "mine"}, ["ddim_epsilon=mine", "recomputed"]),
        ({"ddim_epsilon": "network", "sampler": "dpmpp"}, ["ddim_epsilon=network", "ddim"]),
        ({"lower_order_final": True, "sampler": "ddim"}, ["lower_order_final", "pndm"]),
        ({"net": torch.nn.Linear(2, 2)}, ["net=Linear", "in_channels"]),
        ({"net": None}, ["net=NoneType"]),
    ],
    ids=str,
)
def test_sample_names_argument_value_and_cure(net, arguments, words):
    with pytest.raises(UserError) as refusal:
        ann2snn.sample(**({"net": net, "n": 2, "steps": 2} | arguments), progress=False)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_numpy_scalars_are_numbers(net, tmp_path):
    expected = ann2snn.sample(net, 2, steps=3, eta=0.5, seed=3, progress=False)
    numpy = {"steps": np.int64(3), "eta": np.float32(0.5), "seed": np.uint8(3), "clip": np.bool_(True)}
    assert_equal(ann2snn.sample(net, np.int32(2), batch_size=np.int16(1), progress=False, **numpy), expected)
    built = ann2snn.build_unet(bit=np.int64(2), dropout=np.float64(0.1), **SHAPE | {"ch_mult": np.array([1, 2])})
    assert built.config.bits == 2 and built.config.ch_mult == (1, 2)
    for config in (
        DiffusionConfig(np.int64(10), beta_1=np.float64(1e-4), beta_T=np.float32(0.02)),
        SpikingConfig("stream", signed=np.bool_(False), settle_steps=np.int64(2), burst=np.int8(1)),
        SampleConfig("ddim", np.int64(3), np.float64(0.5), seed=np.int64(3)),
        TrainConfig(lr=np.float64(1e-3), total_steps=np.int64(5), seed=np.int64(2)),
        built.config,
    ):
        for name in config.__dataclass_fields__:
            value = getattr(config, name)
            for part in value if isinstance(value, tuple) else (value,):  # an image's size is two
                assert type(part).__module__ == "builtins", name
    for wrong in (np.float64(2.5), np.float64("nan"), np.bool_(True)):
        with pytest.raises(UserError, match="whole number"):
            SampleConfig(seed=wrong)


def test_numpys_truths_are_truths(net):
    snn, x, t = ann2snn.convert(net), torch.randn(1, 3, 4, 4).double(), torch.tensor([3])
    report = ann2snn.cost(snn, trajectory=[(x, t), (x, t)], carry=np.bool_(True))
    assert report.carried is True
    assert ann2snn.sample(net, 1, steps=1, progress=np.bool_(False)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 300 + ".pt"])
def test_names_that_no_file_can_have(net, tmp_path, name):
    for use in (lambda path: ann2snn.save(net, path), ann2snn.load):
        with pytest.raises(UserError, match="^path .*(null|long)"):
            use(f"{tmp_path}/{name}")


@pytest.mark.parametrize("spoil", [lambda x, t: (x * math.nan, t), lambda x, t: (x, t * math.nan)], ids=["x", "t"])
def test_what_answers_nan_has_no_cost(net, spoil):
    """Neurons that are given NaN send nothing: their silence would be counted."""
    for one in (net, ann2snn.convert(net)):
        with pytest.raises(UserError, match="answers NaN, so its operations cannot be counted"):
            ann2snn.cost(one, *spoil(torch.randn(1, 3, 4, 4).double(), torch.tensor([3])))


def test_a_network_built_with_numpys_numbers_is_saved_and_loaded(tmp_path):
    diffusion = DiffusionConfig(beta_1=np.float64(1e-4), beta_T=np.float64(0.02))
    built = ann2snn.build_unet(bit=np.int64(2), dropout=np.float64(0.1), diffusion=diffusion, **SHAPE)
    snn = ann2snn.convert(built, schedule="stream", settle_steps=np.int64(1))
    checkpoint.save(tmp_path / "snn.pt", checkpoint.payload_of(snn))
    assert ann2snn.load(tmp_path / "snn.pt").spiking.settle_steps == 1


@pytest.mark.parametrize("sampler", ["dpmpp", "dpm_solver", "dpmpp_sde", "ddim"])
def test_python_and_scripts_space_times_alike(sampler):
    skip = "uniform" if sampler == "ddim" else "logsnr"
    assert SampleConfig(sampler).skip == skip
    assert SampleConfig(sampler, skip="quadratic").skip == "quadratic"


def test_flags_and_arguments_share_one_table_of_limits():
    from ann2snn.cli import flags

    assert flags.LIMITS is LIMITS
