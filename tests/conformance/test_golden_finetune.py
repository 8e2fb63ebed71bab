"""Block-wise fine-tuning with the published surrogate gradient, all 30 blocks: finetune_full_8px_bit2.

Tolerances: targets and SNN outputs 1e-5, gradients and their norms 1e-4 (relative L2); losses 1e-5 relative, or
1e-12 where the block is exact and its loss is float noise. Gradients below 1e-5 are zero in exact arithmetic (biases
and embeddings that a one-channel-per-group norm removes, and every gradient of an exact block).
"""

from functools import cache

import pytest

from ann2snn.convert import convert
from ann2snn.finetune import EXACT_BLOCKS, capture_block, proxy_loss, tied_proxy, trainable_parameters, tunable_blocks
from tests.helpers import assert_close, golden, golden_ann

FILE = golden("finetune_full_8px_bit2")
BLOCKS = FILE.strings("blocks")
NOISE = 1e-5


@cache
def networks():
    ann = golden_ann("full", 8)
    snn = convert(ann, schedule="stream", stream_norm="per_step", if_neuron="reference", signed=True)
    return ann, snn, tied_proxy(ann, snn)


def our_name(block: str) -> str:
    return "time_embedding" if block == "time_embedding.timembedding" else block


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block):
    ann, snn, proxy = networks()
    name = our_name(block)
    x, t = FILE[f"{block}/x"], FILE[f"{block}/t"]
    target, student = capture_block(ann, name, x, t).output, capture_block(snn, name, x, t)
    assert_close(target, FILE[f"{block}/target"], 1e-5)
    assert_close(student.output, FILE[f"{block}/snn_out_mean"], 1e-5)

    proxy.zero_grad()
    module = dict(proxy.blocks())[name]
    loss = proxy_loss(target, student, module)
    assert float(loss.detach()) == pytest.approx(float(FILE[f"{block}/loss"]), rel=1e-5, abs=1e-12)

    inner = "timembedding." if name == "time_embedding" else ""
    trainable = {key.removeprefix(inner): p for key, p in trainable_parameters(module).items()}
    assert set(trainable) == set(FILE.strings(f"{block}/trainable")) == set(FILE.under(f"{block}/gradnorm/"))

    loss.backward()
    whole = set(FILE.under(f"{block}/grad/"))
    for key, parameter in trainable.items():
        expected = FILE[f"{block}/gradnorm/{key}"]
        assert expected >= NOISE or parameter.grad.norm() < NOISE
        if expected >= NOISE:
            assert_close(parameter.grad.norm(), expected, 1e-4)
        if key in whole:
            gradient = FILE[f"{block}/grad/{key}"]
            if expected >= NOISE:
                assert_close(parameter.grad, gradient, 1e-4)
            else:
                assert gradient.norm() < NOISE


def test_whole_gradients_are_kept_for_six_blocks_and_most_are_not_noise():
    assert len({block for block in BLOCKS if FILE.under(f"{block}/grad/")}) == 6
    norms = [float(FILE[f"{block}/gradnorm/{key}"]) for block in BLOCKS for key in FILE.under(f"{block}/gradnorm/")]
    assert sum(norm >= NOISE for norm in norms) > 0.85 * len(norms)


def test_the_order_is_the_data_flow_and_the_tail_is_tuned_too():
    ann, snn, _ = networks()
    ours = tunable_blocks(snn)
    assert ours == [our_name(b) for b in BLOCKS if our_name(b) not in EXACT_BLOCKS] + ["tail"]
    assert ours == tunable_blocks(ann)


def test_blocks_called_exact_have_no_loss_in_the_reference_either():
    for block in BLOCKS:
        if our_name(block) in EXACT_BLOCKS:
            assert FILE[f"{block}/loss"] < 1e-12
            assert all(FILE[f"{block}/gradnorm/{key}"] < NOISE for key in FILE.strings(f"{block}/trainable"))
