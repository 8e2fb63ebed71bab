import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert, relative_error
from ann2snn.convert.gap import record_outputs
from ann2snn.finetune import (
    BlockTuning,
    Networks,
    capture_block,
    make_subject,
    prediction_gap,
    proxy_loss,
    subject_gap,
    tied_proxy,
    trainable_parameters,
    tunable_blocks,
    tune_block,
)
from ann2snn.neurons import bins_of
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

STREAM = SpikingConfig("stream", stream_norm="per_step")
CONFIGS = [None, SpikingConfig(), STREAM, SpikingConfig("stream", settle_steps=3)]


@pytest.fixture
def trio():
    ann = random_ann(bits=3)
    snn = convert(ann, STREAM)
    return ann, snn, tied_proxy(ann, snn)


@pytest.mark.parametrize("config", CONFIGS)
def test_capture_sees_time_averaged_inputs_and_outputs(config):
    net = random_ann(bits=3)
    net = net if config is None else convert(net, config)
    x, t = random_batch(net)
    with torch.no_grad(), record_outputs(net) as recorded:
        net(x, t)
    outputs = {name: value for name, (value,) in recorded.items()}
    for name, _ in net.blocks():
        assert_close(capture_block(net, name, x, t).output, outputs[name], 1e-12)
    first = capture_block(net, "downblocks.0", x, t)
    assert_close(first.inputs[0], outputs["head"], 1e-12)
    assert_close(first.inputs[1], outputs["time_embedding"], 1e-12)
    up = capture_block(net, "upblocks.0", x, t).inputs[0]
    assert_close(up, torch.cat([outputs["middleblocks.1"], outputs["downblocks.2"]], 1), 1e-12)
    with pytest.raises(KeyError):
        capture_block(net, "downblocks.99", x, t)


@pytest.mark.parametrize("config", [STREAM, SpikingConfig("stream", settle_steps=3)])
def test_parts_of_diffusion_time_reach_a_block_as_whole_numbers(config):
    ann = random_ann(bits=3, norm="batch", norm_bins=3)
    x, t = random_batch(ann, 4)
    for name in ("middleblocks.0", "tail"):
        inputs = capture_block(convert(ann, config), name, x, t).inputs
        assert_equal(inputs[-1], bins_of(t, 3, 20))
        assert dict(ann.blocks())[name](*inputs).shape[0] == 4


def test_a_capture_leaves_the_network_as_it_was(trio):
    _, snn, _ = trio
    x, t = random_batch(snn)
    with torch.no_grad():
        before = snn(x, t)
        capture_block(snn, "middleblocks.0", x, t)
        assert_equal(snn(x, t), before)
    assert not any(module._forward_hooks for module in snn.modules())


def test_the_proxy_has_the_anns_arithmetic_and_the_snns_own_parameters(trio):
    ann, snn, proxy = trio
    x, t = random_batch(ann)
    with torch.no_grad():
        assert_equal(proxy(x, t), ann(x, t))
        ours, theirs = dict(proxy.named_parameters()), dict(snn.net.named_parameters())
        assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
        snn.net.head.bias += 1
        assert not torch.equal(proxy(x, t), ann(x, t))


def test_proxy_loss_has_the_spiking_value_and_the_proxys_gradient(trio):
    ann, snn, proxy = trio
    x, t = random_batch(ann)
    target, student = capture_block(ann, "middleblocks.0", x, t).output, capture_block(snn, "middleblocks.0", x, t)
    block = proxy.middleblocks[0]
    proxy_loss(target, student, block).backward()
    assert proxy_loss(target, student, block).item() == pytest.approx(float((student.output - target).square().mean()))
    weight = block.block2[-1].weight
    gradient = weight.grad.clone()
    proxy.zero_grad()
    # d mean((s − y)²) = 2 (s − y)/n · ds, with ds of the ANN block.
    upstream = 2 * (student.output - target) / target.numel()
    block(*student.inputs).backward(upstream)
    assert_close(gradient, weight.grad, 1e-12)


def test_thresholds_are_not_trained(trio):
    _, _, proxy = trio
    names = set(trainable_parameters(proxy.middleblocks[0]))
    assert "block1.0.weight" in names and "temb_proj.1.bias" in names
    assert not any("alpha" in name for name in names)
    assert len(names) == 10


def batches(net, seed: int = 100):
    while True:
        yield random_batch(net, 4, seed)
        seed += 1


def test_tuning_a_block_narrows_its_gap_and_touches_nothing_else(trio):
    ann, snn, proxy = trio
    held_back = [random_batch(ann, 4, seed) for seed in range(2)]
    before = {name: value.clone() for name, value in snn.net.state_dict().items()}
    teacher = {name: value.clone() for name, value in ann.state_dict().items()}
    losses = []
    report = tune_block(
        "middleblocks.0", Networks(ann, snn, proxy), batches(ann), held_back, BlockTuning(steps=30, lr=3e-3),
        on_step=lambda step, loss: losses.append((step, loss)),
    )  # fmt: skip
    assert report.gap_after < 0.95 * report.gap_before
    assert 0 < report.best_step <= report.steps == len(losses)
    subject = make_subject("middleblocks.0", Networks(ann, snn, proxy))
    assert subject_gap(subject, [subject.example(b) for b in held_back]) == pytest.approx(report.gap_after, rel=1e-9)
    for name, value in snn.net.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == (name.startswith("middleblocks.0.") and not name.endswith("act_alpha")), name
    for name, value in ann.state_dict().items():
        assert_equal(value, teacher[name])


def test_a_block_that_only_gets_worse_is_left_as_it_was(trio):
    ann, snn, proxy = trio
    before = {name: value.clone() for name, value in snn.net.state_dict().items()}
    tuning = BlockTuning(steps=20, lr=100.0, checks=10, patience=2)
    report = tune_block("middleblocks.0", Networks(ann, snn, proxy), batches(ann), [random_batch(ann)], tuning)
    assert report.best_step == 0 and report.gap_after == report.gap_before
    assert report.steps == 4  # two checks, two steps apart, and patience was over
    for name, value in snn.net.state_dict().items():
        assert_equal(value, before[name])


def test_an_exact_block_is_not_touched():
    ann = random_ann(bits=3)
    snn = convert(ann)
    tuning = BlockTuning(steps=5, lr=1e-3)
    report = tune_block("tail", Networks(ann, snn, tied_proxy(ann, snn)), batches(ann), [random_batch(ann)], tuning)
    assert (report.gap_before, report.gap_after, report.steps) == (0, 0, 0)


def test_tunable_blocks_are_those_with_an_error_of_their_own(trio):
    ann, snn, _ = trio
    x, t = random_batch(ann)
    for name, _ in ann.blocks():
        error = relative_error(capture_block(snn, name, x, t).output, capture_block(ann, name, x, t).output)
        assert (error > 1e-9) == (name in tunable_blocks(snn)), name
    assert prediction_gap(ann, snn, [(x, t)]) > 1e-3
