"""Whatever a public function is given, it answers rightly or refuses in words that name the argument."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ann2snn
from ann2snn import DiffusionConfig, SampleConfig, SpikingConfig, UNetConfig, UserError
from tests.helpers import random_ann

SHAPE = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "image_size": 4}
JUNK = [None, "", "ten", True, 7.5, float("nan"), [], {}, object(), np.array([1, 2]), torch.ones(2), nn.Linear(2, 2)]


@pytest.fixture(scope="module")
def given():
    ann = random_ann(diffusion_steps=10)
    (height, width), channels = ann.image_size, ann.in_channels
    x = torch.randn(2, channels, height, width, dtype=next(ann.parameters()).dtype)
    return SimpleNamespace(ann=ann, snn=ann2snn.convert(ann, schedule="stream"), x=x, t=torch.tensor([2, 7]))


def refused(call, *words):
    with pytest.raises((UserError, TypeError)) as refusal:
        call()
    message = str(refusal.value)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: type(junk).__name__)
def test_networks(given, junk):
    if not isinstance(junk, nn.Module):
        refused(lambda: ann2snn.gap(junk, given.snn, given.x, given.t), "ann")
        refused(lambda: ann2snn.cost(junk, given.x, given.t), "net")
    refused(lambda: ann2snn.gap(given.ann, junk, given.x, given.t), "snn", type(junk).__name__)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: type(junk).__name__)
def test_calls_of_denoisers(given, junk):
    refused(lambda: ann2snn.gap(given.ann, given.snn, junk, given.t), "x: ", "expected")
    refused(lambda: ann2snn.cost(given.snn, junk, given.t), "x: ", "expected")
    refused(lambda: ann2snn.cost(given.snn, trajectory=[(given.x, given.t), (junk, given.t)]), "x: ", "expected")
    if not isinstance(junk, torch.Tensor):
        refused(lambda: ann2snn.gap(given.ann, given.snn, given.x, junk), "t: ", "expected")
        refused(lambda: ann2snn.cost(given.snn, given.x, junk), "t: ", "expected")


@pytest.mark.parametrize(
    "x",
    [
        lambda x: x[0],
        lambda x: x[:0],
        lambda x: x[:, :, :2],
        lambda x: x.half(),
        lambda x: x > 0,
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: x.numpy(),
    ],
    ids="one empty small half bool meta sparse numpy".split(),
)
def test_inputs_of_denoisers(given, x):
    refused(lambda: ann2snn.gap(given.ann, given.snn, x(given.x), given.t[: len(x(given.x))]), "x: ", "expected")
    refused(lambda: ann2snn.cost(given.ann, x(given.x), given.t), "x: ", "expected")


@pytest.mark.parametrize("t", [lambda t: t[0], lambda t: t[:1], lambda t: t[:, None], lambda t: t.bool()], ids="abcd")
def test_times_of_denoisers(given, t):
    refused(lambda: ann2snn.gap(given.ann, given.snn, given.x, t(given.t)), "t: ", "expected")
    refused(lambda: ann2snn.cost(given.snn, given.x, t(given.t)), "t: ", "expected")


@pytest.mark.parametrize("junk", [None, 1, "yes", [], np.array([1, 2]), torch.ones(2)], ids=repr)
def test_switches(given, junk):
    refused(lambda: ann2snn.cost(given.snn, trajectory=[(given.x, given.t)], carry=junk), "carry=")
    refused(lambda: ann2snn.sample(given.ann, 2, steps=1, progress=junk), "progress=")
    refused(lambda: ann2snn.convert(given.ann, signed=junk), "--signed=")


@pytest.mark.parametrize("junk", [None, 0, -1, 2.5, "some", [1], np.array([1, 2]), torch.ones(2)], ids=repr)
def test_time_steps_of_carried_calls(given, junk):
    refused(
        lambda: ann2snn.cost(given.snn, trajectory=[(given.x, given.t)], carry=True, carry_steps=junk), "carry_steps"
    )
    refused(lambda: ann2snn.cost(given.snn, given.x, given.t, carry_steps=junk), "carry_steps")
    refused(lambda: SampleConfig(carry=True, carry_steps=junk), "carry_steps")


def test_time_steps_of_carried_calls_without_carrying(given):
    refused(lambda: ann2snn.cost(given.snn, given.x, given.t, carry_steps=3), "carry_steps=3", "carry")


@pytest.mark.parametrize("junk", [None, True, False, 0.5, 2.7, np.float64(0.5), "2.5", [], np.array([1, 2])], ids=repr)
def test_settling_steps_are_whole(junk):
    refused(lambda: SpikingConfig("stream", settle_steps=junk), "--settle_steps=")
    assert (
        SpikingConfig("stream", settle_steps="3").settle_steps
        == 3
        == SpikingConfig("stream", settle_steps=3.0).settle_steps
    )


@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((DiffusionConfig, name) for name in ("mean_type", "var_type", "schedule", "process", "factor")),
        *((SampleConfig, name) for name in ("sampler", "skip", "corrector", "ddim_epsilon")),
        *((SpikingConfig, name) for name in ("schedule", "stream_norm", "if_neuron", "settle_steps")),
        *((UNetConfig, name) for name in ("weight_quant", "norm", "ch_mult")),
    ],
    ids=str,
)
@pytest.mark.parametrize("junk", [7, True, np.array([1, 2]), torch.ones(2), ["ddim"], b"ddim"], ids=repr)
def test_choices(config, name, junk):
    if name == "ch_mult" and isinstance(junk, np.ndarray):
        pytest.skip("these are multipliers")
    with pytest.raises(UserError, match="--"):
        config(**{name: junk})


@pytest.mark.parametrize("junk", ["3", 1, [], nn.Linear(2, 2), np.array([1, 2])], ids=lambda junk: type(junk).__name__)
def test_configurations(given, junk):
    refused(lambda: ann2snn.convert(given.ann, junk), "spiking", "SpikingConfig")
    refused(lambda: ann2snn.build_unet(bit=2, diffusion=junk, **SHAPE), "diffusion", "DiffusionConfig")


def test_a_network_learns_of_as_many_steps_as_its_process_has(tmp_path):
    """What cannot be loaded must not be built, trained for days, and saved."""
    net = ann2snn.build_unet(bit=2, diffusion=DiffusionConfig(10), **SHAPE)
    ann2snn.save(net, tmp_path / "net")
    assert ann2snn.load(tmp_path / "net").diffusion == net.diffusion
    refused(lambda: ann2snn.build_unet(bit=2, diffusion=DiffusionConfig(10), diffusion_steps=20, **SHAPE), "10", "20")
    net.diffusion = DiffusionConfig(30)
    refused(lambda: ann2snn.save(net, tmp_path / "other"), "10 diffusion steps", "30")
    assert not (tmp_path / "other").exists()


def test_start_of_sampling(given):
    x_T = given.x.float()
    for wrong in (x_T.to("meta"), x_T.to_sparse()):
        refused(lambda wrong=wrong: ann2snn.sample(given.ann, 2, steps=1, x_T=wrong), "x_T")
    refused(lambda: ann2snn.sample(given.ann, 2, steps=1, statistics=torch.ones(10)), "statistics", "analytic_dpm")
    refused(lambda: ann2snn.interpolate(given.ann, -1, 2, 3), "seed_a=-1")
    refused(lambda: ann2snn.interpolate(given.ann, 1, "2", 3), "seed_b=2")


@pytest.mark.parametrize("junk", [None, True, 7, 2.5, [7], np.array([1, 2])], ids=repr)
def test_what_is_quantized(given, junk):
    calls, net = [(given.x, given.t)], random_ann(bits=32)
    refused(lambda: ann2snn.quantize(net, 4, calls, skip=junk), "skip")
    refused(lambda: ann2snn.quantize(net, 4, calls, granularity=junk), "granularity")
    refused(lambda: ann2snn.quantize(net, 4, calls, method=junk), "method")
    if not isinstance(junk, bool):
        refused(lambda: ann2snn.quantize(net, 4, calls, signed=junk), "signed")
    refused(lambda: ann2snn.as_device(given.snn, accumulators=junk), "accumulators")
    refused(lambda: ann2snn.register_attention(junk, "q"), "register_attention")
    refused(lambda: ann2snn.register_attention(nn.Identity, junk), "register_attention")


@pytest.mark.parametrize("junk", [None, True, 7, b"x", [], np.array([1, 2])], ids=repr)
def test_files(given, junk, tmp_path):
    refused(lambda: ann2snn.load(junk), "path")
    refused(lambda: ann2snn.save(given.ann, junk), "path")
    refused(lambda: ann2snn.save(given.ann, tmp_path / "net", dtype=junk), "dtype")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "about", [object(), {1, 2}, np.array([1]), torch.ones(1), float("nan")], ids=lambda value: type(value).__name__
)
def test_what_is_kept_with_a_network(given, about, tmp_path):
    for name in ("net", "net.pt"):
        refused(lambda name=name: ann2snn.save(given.ann, tmp_path / name, about=about), "about")
    refused(lambda: ann2snn.save(given.ann, tmp_path / "net", config={}), "config")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["gpu", "", None, 0.5, "cpu:x"], ids=repr)
def test_where_a_network_is_put(given, device, tmp_path):
    ann2snn.save(given.ann, tmp_path / "net")
    refused(lambda: ann2snn.load(tmp_path / "net", device=device), "device=")
    refused(lambda: ann2snn.load(tmp_path / "net", weights="best"), "weights=best")
