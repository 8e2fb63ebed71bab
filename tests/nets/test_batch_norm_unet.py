"""`--norm=batch`: norms with running statistics are affine maps between activations, and convert exactly."""

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SpikingConfig, UNetConfig
from ann2snn.convert import convert
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from ann2snn.neurons import StepBatchNorm
from tests.helpers import assert_equal, random_ann, random_batch
from tests.scripts import NETWORK, SAMPLING, check, script, train_flags


def batch_normed(seed: int = 0, **options: object) -> UNet:
    """With statistics, weights and biases of every norm drawn at random."""
    net = random_ann(seed, **{"norm": "batch", "spike_driven": True} | options)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, StepBatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.4, generator=generator)
            module.running_mean.normal_(0, 0.4, generator=generator)
            module.running_var.uniform_(0.3, 2.0, generator=generator)
    return net


@pytest.mark.parametrize(
    "options", [{"bits": 2}, {"bits": 4}, {"norm_bins": 3}, {"norm_bins": 3, "spike_driven": False}]
)
def test_it_converts_exactly_under_layer_sync_and_once_a_stream_has_settled(options):
    net = batch_normed(**options)
    x, t = random_batch(net)[0], torch.tensor([0, 19])
    for how in (SpikingConfig(), SpikingConfig("stream", settle_steps="auto")):
        report = ann2snn.gap(net, convert(net, how), x, t)
        assert report.prediction.error <= (0 if how.schedule == "layer_sync" else 1e-12)


@pytest.mark.parametrize("bins", [1, 3])
def test_an_image_does_not_depend_on_those_beside_it(bins):
    """Be they at other diffusion times, which have other statistics."""
    net = batch_normed(norm_bins=bins)
    x, t = random_batch(net, 3)[0], torch.tensor([2, 18, 9])
    with torch.no_grad():
        together, alone = net(x, t), torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    images = ann2snn.sample(net.float(), 3, steps=2, progress=False)
    assert torch.equal(images[1:2], ann2snn.sample(net, 2, steps=2, progress=False)[1:2])


def test_between_neurons_it_is_affine():
    """What group norm is not: in float64, f(a) + f(b) = f(a + b) + f(0) for each norm."""
    net = batch_normed()
    for module in net.modules():
        if isinstance(module, StepBatchNorm):
            a, b = torch.randn(2, 1, module.num_features, 3, 3, dtype=torch.float64)
            torch.testing.assert_close(module(a) + module(b), module(a + b) + module(torch.zeros_like(a)))


def test_statistics_are_those_of_the_part_of_diffusion_time():
    """A network whose bins all have the statistics of one answers as it does at that time, with one set of them."""
    net = batch_normed(norm_bins=3)
    x = random_batch(net, 2)[0]
    for index, t in enumerate((torch.tensor([0, 6]), torch.tensor([7, 13]), torch.tensor([14, 19]))):
        plain, state = batch_normed(), net.state_dict()
        chosen = {name: value[index] if "running" in name else value for name, value in state.items()}
        plain.load_state_dict(chosen)
        with torch.no_grad():
            assert_equal(net(x, t), plain(x, t))


def test_carrying_is_exact_across_parts_of_diffusion_time_and_what_a_new_one_costs_is_counted():
    """With a time embedding that says nothing: then a new time alone changes nothing, but new statistics all."""
    net = batch_normed(norm_bins=2, ch_mult=(1,))
    with torch.no_grad():
        net.time_embedding.timembedding[3].weight.zero_()
    x = random_batch(net, 2)[0]
    calls = [(x, torch.full((2,), t)) for t in (19, 15, 3)]  # the last one has other statistics
    snn = convert(net, SpikingConfig("stream"))
    with torch.no_grad(), snn.carrying():
        for call in calls:
            assert_equal(snn(*call), net(*call))
    device = ann2snn.as_device(snn, accumulators="float64")
    with torch.no_grad(), device.carrying():
        for call in calls:
            torch.testing.assert_close(device(*call), net(*call), rtol=1e-10, atol=1e-10)
    snn = convert(net)  # one pass a call

    def multiplied(*trajectory: tuple) -> float:
        """By the norms, in all calls together."""
        account = ann2snn.cost(snn, trajectory=list(trajectory), carry=True)
        return len(trajectory) * sum(layer.mac for layer in account.layers if layer.kind == "affine")

    once = multiplied(calls[0])
    assert multiplied(*calls[:2]) == pytest.approx(once)
    assert multiplied(*calls) == pytest.approx(2 * once)


def test_norms_have_no_groups_and_other_names_are_refused():
    UNetConfig(ch=30, ch_mult=(1,), norm="batch")  # 32 groups do not divide 30 channels
    for norm in ("layer", "plain", ["batch"]):
        with pytest.raises(UserError, match="--norm="):
            UNetConfig(norm=norm)


def test_statistics_per_diffusion_time_are_batch_norms_and_few():
    for bins, norm, words in (
        (4, "group", "only with --norm=batch"),
        (0, "batch", "use 1 to 64"),
        (65, "batch", "use"),
    ):
        with pytest.raises(UserError, match=f"--norm_bins={bins}: {words}"):
            UNetConfig(norm=norm, norm_bins=bins)


def test_a_checkpoint_comes_back_and_an_older_one_without_the_field_has_group_norms(tmp_path):
    path = tmp_path / "ckpt.pt"
    for ann in (batch_normed().float(), batch_normed(norm_bins=3).float(), random_ann().float()):
        payload = checkpoint.payload_of(ann)
        assert ("norm_bins" in payload["config"]["unet"]) == (
            ann.config.norm_bins > 1
        )  # files of before have no such key
        if ann.config.norm == "group":
            del payload["config"]["unet"]["norm"]
        checkpoint.save(path, payload)
        loaded = ann2snn.load(path)
        assert loaded.config == ann.config
        x, t = random_batch(ann)
        with torch.no_grad():
            assert_equal(loaded(x.float(), t), ann(x.float(), t))


@pytest.mark.slow
def test_all_stages_remember_it_and_refuse_a_contradiction(tmp_path):
    logdir = tmp_path / "run"
    flags = ["--norm=batch", "--spike_driven", "--sample_size=1", "--ema_decay=0.5", *SAMPLING]
    check(script("ANN_train.py", *train_flags(logdir, 2, *flags)))
    raw = torch.load(logdir / "ckpt.pt", weights_only=True)
    raws, averaged = raw["net_model"], raw["ema_model"]
    means = [name for name in raws if name.endswith("running_mean")]
    assert means and all(bool(averaged[name].any()) for name in means)  # the averaged weights have averaged statistics
    assert any(not torch.equal(raws[name], averaged[name]) for name in means)
    convert_flags = ["--eval", f"--logdir={logdir}", *NETWORK, *SAMPLING, "--gen_images=0", "--gap_images=1"]
    assert "layer_sync equals its quantized ANN exactly" in check(script("SNN_conversion.py", *convert_flags))
    assert ann2snn.load(logdir / "converted_snn.pt").config.norm == "batch"
    done = script("SNN_conversion.py", *convert_flags, "--norm=group")
    assert done.returncode == 2 and f"--norm=group contradicts {logdir}/ckpt.pt" in done.stderr
    resumed = script("ANN_train.py", *train_flags(logdir, 4, "--spike_driven", "--sample_size=1", *SAMPLING))
    assert resumed.returncode == 2 and "trained with norm=batch, now norm=group" in resumed.stderr
