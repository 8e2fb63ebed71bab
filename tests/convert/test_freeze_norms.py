"""Calibration of frozen norms, and what a network that runs on them is equal to."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ann2snn
from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork, convert, freeze_norms, relative_error
from ann2snn.convert.calibrate import norm_inputs, pool
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from ann2snn.neurons import SpikingGroupNorm
from ann2snn.stages.convert import converted, gap_reports
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

FROZEN = SpikingConfig("stream", stream_norm="frozen", settle_steps="auto")


def norms(snn: SpikingNetwork) -> dict[str, SpikingGroupNorm]:
    return {name: m for name, m in snn.net.named_modules() if isinstance(m, SpikingGroupNorm)}


def statistics(snn: SpikingNetwork) -> dict[str, torch.Tensor]:
    return {name: value for name, value in snn.net.state_dict().items() if "frozen" in name}


def spread(count: int) -> torch.Tensor:
    """Times 0..19 of the test network, as many as asked for, all different."""
    return torch.arange(count) * 20 // count


def call(net: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x, t)


class FixedNorm(nn.Module):
    """Batch norm at inference, one image at a time, with the statistics of the image's bin."""

    def __init__(self, norm: SpikingGroupNorm, indices: list[int]) -> None:
        super().__init__()
        self.norm, self.indices = norm, indices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, width = self.norm, self.norm.num_channels // self.norm.num_groups
        return torch.cat(
            [
                F.batch_norm(
                    image[None],
                    norm.frozen_mean[index].repeat_interleave(width),
                    norm.frozen_var[index].repeat_interleave(width),
                    *(norm.weight, norm.bias),
                    eps=norm.eps,
                )
                for image, index in zip(x, self.indices, strict=True)
            ]
        )


def with_fixed_norms(ann: UNet, snn: SpikingNetwork, indices: list[int]) -> UNet:
    """The quantized ANN with every GroupNorm replaced by the frozen affine map of `snn`."""
    fixed = copy.deepcopy(ann)
    for name, norm in norms(snn).items():
        parent, leaf = name.rsplit(".", 1)
        fixed.get_submodule(parent)[int(leaf)] = FixedNorm(norm, indices)
    return fixed


# ---- what the network is equal to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3])
def test_settled_it_equals_the_quantized_ann_with_fixed_norms_and_not_the_ann(bits):
    ann = random_ann(bits=bits)
    snn = convert(ann, FROZEN)
    freeze_norms(ann, snn, *random_batch(ann, 12), bins=4)
    x, _ = random_batch(ann, 3, seed=1)
    t = torch.tensor([4.75, 5, 19])  # bins 0, 1 and 3
    actual = call(snn, x, t)
    assert_close(actual, call(with_fixed_norms(ann, snn, [0, 1, 3]), x, t), 1e-12)
    assert relative_error(actual, call(ann, x, t)) > 0.01
    assert 0 < snn.last_settle_steps < snn.settle_limit


def test_with_an_image_of_its_own_in_every_bin_it_equals_the_quantized_ann():
    ann = random_ann()
    snn = convert(ann, FROZEN)
    (x, _), t = random_batch(ann, 4), spread(4)
    freeze_norms(ann, snn, x, t, bins=4)
    assert_close(call(snn, x, t), call(ann, x, t), 1e-12)
    with snn.running_as(SpikingConfig("stream", stream_norm="frozen")):
        assert relative_error(call(snn, x, t), call(ann, x, t)) > 1e-3  # without settling spikes arrive unevenly
    assert relative_error(call(snn, x.flip(0), t), call(ann, x.flip(0), t)) > 1e-3  # statistics of other images


def test_times_reach_every_norm_whatever_the_chunk_and_leave_no_trace():
    ann = random_ann()
    snn = convert(ann, FROZEN)
    freeze_norms(ann, snn, *random_batch(ann, 8), bins=20)
    x, t = random_batch(ann, 3, seed=2)
    together = call(snn, x, t)
    alone = torch.cat([call(snn, x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert_close(together, alone, 1e-12)
    assert snn.clock.times is None
    assert relative_error(call(snn, x, t.roll(1)), together) > 1e-3


def test_layer_sync_and_the_cumulative_norm_do_not_notice():
    ann = random_ann()
    snn = convert(ann)
    batch = random_batch(ann)
    cumulative = SpikingConfig("stream")
    with snn.running_as(cumulative):
        before = call(snn, *batch)
    freeze_norms(ann, snn, *random_batch(ann, 4, seed=3), bins=2)
    assert_close(call(snn, *batch), call(ann, *batch), 1e-12)
    with snn.running_as(cumulative):
        assert_equal(call(snn, *batch), before)


def test_without_statistics_it_refuses_to_run():
    ann = random_ann()
    snn = convert(ann, stream_norm="frozen", schedule="stream")
    for attempt in (snn.check_ready, lambda: call(snn, *random_batch(ann))):
        with pytest.raises(UserError, match="freeze_norms"):
            attempt()
    with snn.running_as(SpikingConfig(stream_norm="frozen")):  # layer_sync needs none
        snn.check_ready()
        call(snn, *random_batch(ann))
    freeze_norms(ann, snn, *random_batch(ann))
    snn.check_ready()


# ---- calibration ----------------------------------------------------------------------------------------------------


def test_a_bin_with_one_image_holds_that_images_statistics():
    ann = random_ann()
    snn = convert(ann)
    (x, _), t = random_batch(ann, 5), spread(5)
    freeze_norms(ann, snn, x, t, bins=5, batch_size=2)
    name, norm = "middleblocks.0.block2.0", ann.middleblocks[0].block2[0]
    seen = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call(ann, x, t)
    values = seen[0].unflatten(1, (norm.num_groups, -1)).flatten(2)
    assert_close(norms(snn)[name].frozen_mean, values.mean(2), 1e-12)
    assert_close(norms(snn)[name].frozen_var, (values - values.mean(2, keepdim=True)).square().mean(2), 1e-12)


def test_pooled_statistics_keep_the_output_as_varied_within_an_image_as_group_norms():
    generator = torch.Generator().manual_seed(0)
    scale, offset = torch.rand(2, 6, 4, 1, generator=generator, dtype=torch.float64) * 3
    x = torch.randn(6, 4, 50, generator=generator, dtype=torch.float64) * scale + offset  # [N, groups, values]
    mean, var = pool(x.mean(2), x.var(2, unbiased=False), torch.zeros(6, dtype=torch.int64), bins=1)
    out = (x - mean[0, :, None]) / var[0, :, None].sqrt()
    assert_close(out.var(2, unbiased=False).mean(0), torch.ones(4, dtype=torch.float64), 1e-12)  # group norm: 1 each
    assert out.mean((0, 2)).abs().max() < 1e-12  # group norm: 0
    together = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
    assert (var[0] < together * 0.99).all()  # the variance of all values at once would shrink the currents


def test_empty_bins_take_the_nearest_statistics_the_earlier_of_two():
    mean, var = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([[0.5], [1.5], [4.0]])
    pooled = pool(mean, var, torch.tensor([2, 2, 6]), bins=9)
    assert pooled[0].flatten().tolist() == [2, 2, 2, 2, 2, 7, 7, 7, 7]
    assert pooled[1].flatten().tolist() == [1, 1, 1, 1, 1, 4, 4, 4, 4]


def test_statistics_do_not_depend_on_the_batch_size_and_are_of_the_whole_width():
    ann = random_ann().float()
    x, t = random_batch(ann, 5)
    whole = norm_inputs(ann, ["tail.0"], x.float(), t, batch_size=5)["tail.0"]
    parts = norm_inputs(ann, ["tail.0"], x.float(), t, batch_size=2)["tail.0"]
    assert whole[0].dtype == torch.float64 and whole[0].shape == (5, 2)
    for a, b in zip(whole, parts, strict=True):
        assert_close(b, a, 1e-5)


def test_dropout_is_off_while_calibrating_and_the_ann_is_left_as_it_was():
    ann = random_ann(dropout=0.5)
    snn, twin = convert(ann), convert(ann)
    batch = random_batch(ann, 4)
    freeze_norms(ann, snn, *batch)
    ann.train()
    weights = {name: value.clone() for name, value in ann.state_dict().items()}
    freeze_norms(ann, twin, *batch)
    assert ann.training and not any(module._forward_pre_hooks for module in ann.modules())
    for name, value in ann.state_dict().items():
        assert_equal(value, weights[name])
    for name, value in statistics(snn).items():
        assert_equal(statistics(twin)[name], value)


def test_freezing_again_replaces_the_statistics_and_their_number_of_bins():
    ann = random_ann()
    snn = convert(ann)
    ann2snn.freeze_norms(ann, snn, *random_batch(ann, 4))
    assert all(len(value) == 10 for value in statistics(snn).values())
    ann2snn.freeze_norms(ann, snn, *random_batch(ann, 4), bins=3)
    assert len(statistics(snn)) == 2 * len(norms(snn)) and all(len(value) == 3 for value in statistics(snn).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 0}, "--norm_bins=0: use 1 to 20"),
        ({"bins": 21}, "--norm_bins=21: use 1 to 20"),
        ({"bins": 2.5}, "whole number"),
        ({"x": torch.zeros(0, 3, 4, 4), "t": torch.zeros(0)}, "0 images"),
        ({"t": torch.zeros(3)}, "one time an image"),
        ({"ann": random_ann(num_res_blocks=2)}, None),
        ({"ann": random_ann(norm_groups=4)}, "4 groups in the ANN"),
        ({"x": torch.full((2, 3, 4, 4), torch.nan, dtype=torch.float64)}, "not finite"),
    ],
    ids=["no bins", "bins finer than time", "half a bin", "no image", "times", "blocks", "groups", "nan"],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(change, message):
    ann = random_ann()
    x, t = random_batch(ann)
    arguments = {"ann": ann, "snn": convert(ann), "x": x, "t": t, "bins": 2} | change
    with pytest.raises(UserError) as refusal:
        freeze_norms(**arguments)
    assert "\n" not in str(refusal.value) and (message or "") in str(refusal.value)


# ---- the stage ------------------------------------------------------------------------------------------------------


def test_the_stage_freezes_only_when_asked_and_reproducibly():
    ann = random_ann()
    assert not statistics(converted(ann, SpikingConfig("stream"), bins=0, seed=0))
    first, again = (statistics(converted(ann, FROZEN, bins=4, seed=5)) for _ in range(2))
    other = statistics(converted(ann, FROZEN, bins=4, seed=6))
    assert first.keys() == again.keys() and all(len(value) == 4 for value in first.values())
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not all(torch.equal(other[name], value) for name, value in first.items())
    with pytest.raises(UserError, match="--norm_bins=0"):
        converted(ann, FROZEN, bins=0, seed=0)


def test_the_gap_is_reported_for_the_frozen_norm_as_asked():
    ann = random_ann()
    asked = SpikingConfig("stream", stream_norm="frozen", settle_steps=1)
    reports = gap_reports(ann, converted(ann, asked, bins=4, seed=0), asked, images=1, seed=0)
    assert [(r.spiking.schedule, r.spiking.stream_norm, r.spiking.settle_steps) for r in reports] == [
        ("layer_sync", "frozen", 0),
        ("stream", "frozen", 0),
        ("stream", "frozen", 1),
    ]
    assert reports[0].prediction.error < 1e-12 < reports[1].prediction.error
