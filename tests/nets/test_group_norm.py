"""GroupNorm on channels-last images: torch's numbers, gradients included, and the layout it was given."""

import pytest
import torch
from torch.nn import functional as F

from ann2snn.errors import UserError
from ann2snn.nets.group_norm import SWITCH, GroupNorm, group_norm_channels_last
from tests.helpers import random_ann


def leaves(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x = (3 + torch.randn(3, 12, 5, 6, dtype=dtype)).to(memory_format=torch.channels_last)
    return [value.requires_grad_() for value in (x, torch.randn(12, dtype=dtype), torch.randn(12, dtype=dtype))]


def test_values_and_gradients_are_torchs():
    x, weight, bias = leaves(torch.float64)
    ours, theirs = group_norm_channels_last(x, 4, weight, bias, 1e-5), F.group_norm(x, 4, weight, bias, 1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn(theirs.shape, dtype=torch.float64)
    for a, b in zip(
        *(torch.autograd.grad((y * direction).sum(), (x, weight, bias)) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    x, weight, bias = (value.detach().to(dtype) for value in leaves(torch.float64))
    exact = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    ours = group_norm_channels_last(x, 4, weight, bias, 1e-5)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_the_switch_and_training_mode_decide(monkeypatch):
    used = []
    monkeypatch.setattr("ann2snn.nets.group_norm.group_norm_channels_last", lambda x, *_: used.append(1) or x)
    x = torch.randn(1, 4, 3, 3).to(memory_format=torch.channels_last)
    cases = [("", True, 0), ("channels_last", False, 0), ("channels_last", True, 1), ("torch", True, 0)]
    for value, training, wanted in cases:
        monkeypatch.setenv(SWITCH, value)
        used.clear()
        GroupNorm(2, 4).train(training)(x)
        assert len(used) == wanted
    monkeypatch.setenv(SWITCH, "channels_last")
    GroupNorm(2, 4)(x.contiguous())
    assert not used
    monkeypatch.setenv(SWITCH, "nhwc")
    with pytest.raises(UserError, match="use torch or channels_last"):
        GroupNorm(2, 4)


def test_a_network_trains_alike(monkeypatch):
    x, t = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.tensor([1, 5]),
    )
    found = []
    for value in ("torch", "channels_last"):
        monkeypatch.setenv(SWITCH, value)
        net = random_ann().train()
        net(x, t).square().sum().backward()
        found.append([parameter.grad for parameter in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
