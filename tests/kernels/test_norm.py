"""Norm and neuron in one function, against the two layers they stand for; and which implementation is chosen."""

import pytest
import torch
from torch.nn import functional as F

from ann2snn.config import SpikingConfig
from ann2snn.kernels import Firing, IFRule, NormIFState, NormRule, choice, kernels_by, norm_count, norm_scan
from ann2snn.neurons import Clock, IFNeuron, SpikingGroupNorm
from quant.functional import uniform_levels
from tests.helpers import assert_equal

THETA = 0.7


def layers(signed: bool, burst: int) -> tuple[Clock, SpikingGroupNorm, IFNeuron]:
    config = SpikingConfig("stream", signed=signed, burst=burst, settle_steps=3)
    clock = Clock(config, bits=3)
    norm, neuron = SpikingGroupNorm(clock, 2, 6).double(), IFNeuron(clock, THETA).double()
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(norm.bias, std=0.4, generator=torch.Generator().manual_seed(2))
    neuron.unit_events = True
    return clock, norm, neuron


@pytest.mark.parametrize(("signed", "burst"), [(True, 1), (False, 1), (True, 3)])
@pytest.mark.parametrize("per_channel", [False, True])
@torch.no_grad()
def test_norm_scan_is_the_norm_followed_by_the_neuron(signed, burst, per_channel):
    clock, norm, neuron = layers(signed, burst)
    if per_channel:
        neuron.expand((6, 1, 1), thresholds=True, charges=True)
        neuron.act_alpha.mul_(torch.linspace(0.7, 1.2, 6).double()[:, None, None])
        neuron.charge.mul_(torch.linspace(0.3, 1.5, 6).double()[:, None, None])
    charge = neuron.charge if per_channel else 0.5
    rule, spikes = NormRule.of(norm), IFRule("bounded", signed, burst=burst)
    x = torch.randn(10, 2, 6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[7:] = 0  # settling
    state = NormIFState.rest(x[0], rule)
    for chunk in x.split([2, 4, 1, 3]):
        clock.chunk_steps = len(chunk)
        wanted = clock.unfold(neuron(norm(chunk.flatten(0, 1))))
        events = norm_scan(chunk, rule, Firing.of(neuron.theta, charge), spikes, state, 7)
        clock.elapsed += len(chunk)
        assert_equal(events, wanted)
        torch.testing.assert_close(state.total, norm.state.total, rtol=1e-12, atol=1e-12)
        assert_equal(state.count, neuron.state.count)
        assert state.steps == clock.elapsed
    assert state.count.any()
    # Whatever the order of arrival, the neurons settle on the quantizer's count of the normalized window mean.
    if signed and burst > 1 and not per_channel:
        mean = F.group_norm(x.sum(0) / 7, 2, norm.weight, norm.bias, norm.eps)
        assert_equal(state.count, uniform_levels(mean * 7, neuron.theta * 7, 3))


@torch.no_grad()
def test_events_are_worth_what_is_asked_of_them():
    x = torch.randn(3, 2, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    norm, theta = NormRule(3, torch.ones(6), torch.zeros(6)), torch.tensor(THETA)
    unit = norm_scan(x, norm, Firing.of(theta), IFRule(), NormIFState.rest(x[0], norm), 3)
    assert set(unit.unique().tolist()) == {-1, 0, 1}
    for size in (theta, torch.linspace(0.5, 2, 6)[:, None, None]):
        sized = Firing.of(theta, size=size)
        assert_equal(norm_scan(x, norm, sized, IFRule(), NormIFState.rest(x[0], norm), 3), unit * size)
        assert_equal(norm_count(x[0], norm, sized, 3), norm_count(x[0], norm, Firing.of(theta), 3) * size)


def test_norm_scan_refuses_what_it_cannot_run():
    x, norm, theta = torch.ones(3, 2, 6, 5, 3), NormRule(3, torch.ones(6), torch.zeros(6)), torch.tensor(THETA)

    def refused(match: str, x=x, theta=theta, rule: IFRule | None = None, like=x[0]) -> None:
        with pytest.raises(ValueError, match=match):
            norm_scan(x, norm, Firing.of(theta), rule or IFRule(), NormIFState.rest(like, norm), 3)

    refused("bounded neurons that spike", rule=IFRule("reference"))
    refused("bounded neurons that spike", rule=IFRule(smooth=True))
    refused("a step", like=x[0, :1])
    refused("a step", x=x[0])
    refused("use \\[\\] or \\[6, 1, 1\\]", theta=theta.expand(2, 6, 5, 3))
    with pytest.raises(ValueError, match="use \\[\\] or"):
        norm_count(x[0], norm, Firing.of(theta.expand(6)), 3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_count_is_the_quantizers_level_bit_for_bit(bits, dtype):
    x = torch.randn(2, 6, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight, bias, theta = torch.rand(6, dtype=dtype) + 0.5, torch.rand(6, dtype=dtype), torch.tensor(THETA, dtype=dtype)
    T = 2**bits - 1
    count = norm_count(x, NormRule(3, weight, bias), Firing.of(theta), T)
    assert_equal(count, uniform_levels(F.group_norm(x, 3, weight, bias), theta, bits))
    assert count.unique().numel() > 2 and not count.requires_grad
    charges = torch.rand(6, 1, 1, dtype=dtype)
    wanted = torch.floor(F.group_norm(x, 3, weight, bias) * (T / theta) + charges).clamp(0, T)
    assert_equal(norm_count(x, NormRule(3, weight, bias), Firing.of(theta, charges), T), wanted.detach())


# ---- choice ----------------------------------------------------------------------------------------------------------


def test_a_cpu_has_torch_unless_triton_is_interpreted(monkeypatch):
    x = torch.ones(3)
    for setting in (None, "", "torch", "triton"):
        monkeypatch.setattr(choice.os, "environ", {} if setting is None else {choice.ENVIRONMENT: setting})
        assert not choice.runs_triton(x)
    monkeypatch.setattr(choice.os, "environ", {choice.ENVIRONMENT: "triton", "TRITON_INTERPRET": "1"})
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    assert choice.runs_triton(x) and choice.runs_triton(x, x.bfloat16())
    for unfit in (x.double(), x.int(), x[:0], x.to("meta")):
        assert not choice.runs_triton(x, unfit)
    with kernels_by("torch"):
        assert not choice.runs_triton(x)
        with kernels_by("triton"):
            assert choice.runs_triton(x)
        assert not choice.runs_triton(x)
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    assert not choice.runs_triton(x)


def test_a_gpu_that_is_too_old_or_does_not_work_has_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert not choice._works.__wrapped__(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with pytest.warns(UserWarning, match="Triton does not work on GPU 99, torch runs instead: "):
        assert not choice._works.__wrapped__(99)


def test_a_name_that_is_no_backend_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'cuda' is no kernel backend, use torch or triton"), kernels_by("cuda"):
        pass
    monkeypatch.setenv(choice.ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="ANN2SNN_KERNELS: 'fast'"):
        choice.runs_triton(torch.ones(1))
