"""The Triton scan of integrate-and-fire neurons against torch's; not collected by name, see `test_triton`."""

import itertools
import os

import pytest
import torch
from torch import Tensor

from ann2snn.kernels import IFRule, IFState, if_scan, kernels_by
from tests.helpers import assert_equal

DEVICE = torch.device(os.environ.get("KERNEL_DEVICE", "cpu"))
WINDOW = 7
RULES = [IFRule(signed=signed, burst=burst) for signed in (True, False) for burst in (1, 3, WINDOW)]
SCALAR = torch.tensor(0.75, device=DEVICE)
PER_CHANNEL = torch.tensor([1.0, 0.7, 1.3], device=DEVICE).view(3, 1, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def currents(*shape: int) -> Tensor:
    """Quarters, whose sums are exact, among others."""
    quarters = torch.randint(-5, 8, shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) / 4
    return torch.where(normal(*shape[1:], seed=2) > 0, quarters, 0.7 * normal(*shape, seed=3) + 0.3)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def learn(backend: str, current: Tensor, theta: Tensor, rule: IFRule, cuts=(), losses="e") -> list[Tensor]:
    """Events, membrane, count; gradients of current, θ, first charge and count. losses: which of "evn" they are of."""
    leaves = [leaf(current), leaf(theta), leaf(0.4 + 0 * theta), leaf((4 * normal(*current.shape[1:]).abs()).floor())]
    inputs, theta, charge, count = leaves
    state = IFState.rest(inputs[0].float(), theta, charge)
    state.count = state.count + count.clamp(max=WINDOW).to(current.dtype)
    events = []
    for chunk in inputs.split(cuts or len(inputs)):
        with kernels_by(backend):
            events.append(if_scan(chunk, state, theta, rule, WINDOW))
        name = {"triton": "BoundedScanBackward", "torch": "_ScanBackward"}[backend]
        assert type(events[-1].grad_fn).__name__ == name
    values = {"e": torch.cat(events), "v": state.membrane, "n": state.count}
    sum((normal(*values[name].shape, seed=ord(name)) * values[name]).sum() for name in losses).backward()
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in leaves]
    return [*(value.detach() for value in values.values()), *gradients]


def assert_alike(given: list[Tensor], wanted: list[Tensor]) -> None:
    for index, (value, other) in enumerate(zip(given, wanted, strict=True)):
        assert value.dtype == other.dtype
        if index < 3:
            assert_equal(value, other)
        else:
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("cuts", [(7,), (2, 4, 1, 3)], ids=str)
def test_if_scan_and_its_gradient(cuts, rule):
    current = currents(sum(cuts), 2, 3, 3, 47)  # no multiple of a block
    for theta, losses in itertools.product((SCALAR, PER_CHANNEL), ("e", "evn")):
        results = [learn(backend, current, theta, rule, cuts, losses) for backend in ("triton", "torch")]
        assert_alike(*results)
        assert all(gradient.any() for gradient in results[0][3:6])
        assert rule.burst == 1 or results[0][0].abs().max() > 1


@pytest.mark.parametrize("losses", ["v", "n"])
def test_a_loss_of_the_state_alone(losses):
    for rule in (IFRule(), IFRule(burst=3)):
        given = (currents(9, 1, 3, 4, 4), PER_CHANNEL, rule, (8, 1), losses)
        assert_alike(learn("triton", *given), learn("torch", *given))


def test_one_step_of_one_neuron_and_thresholds_of_other_shapes():
    everywhere = 0.5 + torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    for theta in (everywhere, everywhere[0], everywhere[0, 0, 0], everywhere[:, :1, :1, :1], SCALAR.view(1, 1)):
        given = (currents(3, 2, 3, 4, 5), theta, IFRule(burst=2), (1, 2))
        assert_alike(learn("triton", *given), learn("torch", *given))
    for rule in (IFRule(), IFRule(burst=3)):
        given = (torch.ones(1, 1, 1, device=DEVICE), SCALAR, rule)
        assert_alike(learn("triton", *given), learn("torch", *given))


def test_layouts():
    plain = currents(4, 2, 3, 5, 4)
    folded = plain.flatten(0, 1).to(memory_format=torch.channels_last).view(4, 2, 3, 5, 4)
    steps_inside = plain.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    gapped = torch.stack([plain, plain], dim=-1)[..., 0]
    for theta in (SCALAR, PER_CHANNEL):
        wanted = learn("torch", plain, theta, IFRule(burst=3), (3, 1), "evn")
        for current in (folded, steps_inside, gapped):
            assert_alike(learn("triton", current, theta, IFRule(burst=3), (3, 1), "evn"), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_currents_of_a_float32_membrane(dtype):
    given = (currents(5, 2, 3, 4, 4).to(dtype), PER_CHANNEL, IFRule(burst=2), (3, 2), "evn")
    results = [learn(backend, *given) for backend in ("triton", "torch")]
    assert results[0][3].dtype == dtype and results[0][0].dtype == torch.float32
    by_current, other = (result.pop(3).float() for result in results)
    torch.testing.assert_close(by_current, other, rtol=2**-7, atol=1e-5)  # the interpreter cuts bfloat16 off
    for index, (value, wanted) in enumerate(zip(*results, strict=True)):
        torch.testing.assert_close(value, wanted, rtol=1e-5 if index > 2 else 0, atol=1e-4 if index > 2 else 0)


def test_what_triton_cannot_do_is_torchs():
    current = leaf(currents(3, 2, 3, 4, 4))
    for x, theta in ((current.double(), SCALAR.double()), (current.bfloat16(), SCALAR), (current[:, :0], SCALAR)):
        with kernels_by("triton"):
            events = if_scan(x, IFState.rest(x[0].detach(), theta), theta, IFRule(), WINDOW)
        assert type(events.grad_fn).__name__ == "_ScanBackward" and events.shape == x.shape and events.dtype == x.dtype
    for kind, smooth in (("reference", False), ("bounded", True)):
        with kernels_by("triton"):
            events = if_scan(current, IFState.rest(current[0], SCALAR), SCALAR, IFRule(kind, smooth=smooth), WINDOW)
        assert type(events.grad_fn).__name__ == "StackBackward0"


def test_tensors_of_another_shape_are_refused_as_torch_refuses_them():
    current = leaf(currents(3, 2, 3, 4, 4))
    for backend, like in itertools.product(("triton", "torch"), (current[0, :1, :2], current[0, ..., :2])):
        with kernels_by(backend), pytest.raises(RuntimeError):
            if_scan(current, IFState.rest(like, SCALAR), SCALAR, IFRule(), WINDOW)
    with kernels_by("triton"), pytest.raises(RuntimeError):
        if_scan(current, IFState.rest(current[0], SCALAR), PER_CHANNEL[:2], IFRule(), WINDOW)
