"""Under autocast, activations answer in the type that convolutions would cast their answers to."""

import pytest
import torch
from torch import nn

from ann2snn import kernels
from ann2snn.convert import convert
from ann2snn.nets import parts
from ann2snn.nets.parts import FusedReLU
from ann2snn.neurons import integrate_fire
from tests.helpers import assert_equal, random_ann, random_batch


@pytest.fixture
def answered(monkeypatch) -> list[torch.dtype]:
    """Types that norms with their activations have answered in."""
    found: list[torch.dtype] = []

    def recorded(*args: object) -> torch.Tensor:
        answers = kernels.norm_follow(*args)
        found.append(answers.dtype)
        return answers

    for module in (parts, integrate_fire):
        monkeypatch.setattr(module, "norm_follow", recorded)
    return found


@pytest.mark.parametrize("network", ["ANN", "layer_sync"])
def test_the_answer_is_the_same_to_the_last_bit(network, answered, monkeypatch):
    net = random_ann(dropout=0.3, spike_driven=True).float()
    x, t = random_batch(net)
    net = net if network == "ANN" else convert(net)
    with torch.no_grad(), kernels.kernels_by("torch"), torch.autocast("cpu", torch.bfloat16):
        joined = net(x.float(), t)
        assert set(answered) == {torch.bfloat16} and len(answered) > 5
        answered.clear()
        monkeypatch.setattr(parts, "_type_for", lambda *_: None)
        assert_equal(net(x.float(), t), joined)
        assert set(answered) == {torch.float32}


def test_only_what_convolutions_alone_read(answered):
    norm, relu, x = nn.GroupNorm(2, 4), FusedReLU(2), torch.randn(2, 4, 3, 3)
    conv, dropout = nn.Conv2d(4, 4, 1), parts.BatchDropout(0.5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for readers in ((), (nn.Softmax(1),), (conv, nn.Tanh()), (dropout, conv)):
            assert parts.activate(norm, relu, x, *readers).dtype == torch.float32
        assert parts.activate(norm, relu, x, dropout.eval(), conv).dtype == torch.bfloat16
        conv.register_forward_pre_hook(lambda module, args: None)  # somebody wants to see what it is given
        assert parts.activate(norm, relu, x, conv).dtype == torch.float32
    with torch.no_grad():
        assert parts.activate(norm, relu, x, nn.Conv2d(4, 4, 1)).dtype == torch.float32
