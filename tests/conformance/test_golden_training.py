"""One training step of the quantized network: train_step_tiny_8px_bit2.

Tolerances: loss and total gradient norm 1e-5; each gradient and its norm 1e-4 (relative L2); of what Adam's first step
(lr 2e-4) adds to a tensor, 1e-3 (relative L2) and 1e-5 in any element, since Adam divides each element's gradient by
its size and so magnifies the noise of the smallest. Gradients that are zero in exact arithmetic are float noise (norm
below 1e-5 beside a total of 9.8), which Adam blows up to ±lr: for these, our gradient must be noise as well.
"""

from functools import cache

import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP, squared_error
from tests.helpers import assert_close, golden, golden_ann, golden_state

NOISE = 1e-5
FILE = golden("train_step_tiny_8px_bit2")


@cache
def one_step():
    """(loss, gradient norm before clipping, gradients before clipping, parameters after the step)."""
    net = golden_ann("tiny", 8).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    loss = squared_error(net, VP(DiffusionConfig()), FILE["x_0"], FILE["t"], FILE["noise"]).mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), norm, gradients, {name: p.detach() for name, p in net.named_parameters()}


def zero_in_exact_arithmetic(name: str) -> bool:
    return float(FILE[f"gradnorm/{name}"]) < NOISE


def test_loss_and_gradient_norm():
    loss, norm, *_ = one_step()
    assert FILE["margin"] > 1e-5
    assert_close(loss, FILE["loss"], 1e-5)
    assert_close(norm, FILE["grad_norm"], 1e-5)


def test_every_gradient():
    _, _, gradients, _ = one_step()
    assert set(FILE.under("gradnorm/")) == set(gradients)
    whole = set(FILE.under("grad/"))
    assert len(whole) > 100
    for name, gradient in gradients.items():
        if zero_in_exact_arithmetic(name):
            assert gradient.norm() < NOISE, name
            if name in whole:
                assert FILE[f"grad/{name}"].norm() < NOISE, name
            continue
        assert_close(gradient.norm(), FILE[f"gradnorm/{name}"], 1e-4)
        if name in whole:
            assert_close(gradient, FILE[f"grad/{name}"], 1e-4)


def test_every_parameter_after_one_clipped_adam_step():
    *_, after = one_step()
    names, before = FILE.under("after/"), golden_state("tiny")
    assert len(names) > 100
    moved = 0
    for name in names:
        expected = FILE[f"after/{name}"]
        if not zero_in_exact_arithmetic(name):
            assert_close(after[name] - before[name], expected - before[name], 1e-3)
            assert (after[name] - expected).abs().max() < 1e-5, name
            moved += 1
    assert moved > 90


def test_the_time_table_is_not_trained():
    _, _, gradients, _ = one_step()
    assert FILE.strings("no_grad") == ["time_embedding.timembedding.0.weight"]
    assert not set(FILE.strings("no_grad")) & set(gradients)
