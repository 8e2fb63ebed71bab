"""The Triton kernels against torch; not collected by name. `test_triton` runs them in a process of their own.

KERNEL_DEVICE=cuda runs them on a GPU; on the CPU they need TRITON_INTERPRET=1 from the start of the process.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ann2snn import kernels
from ann2snn.kernels import Firing, IFRule, LIFRule, NormIFState, NormRule, cumulative_norm, kernels_by, lif_scan
from ann2snn.kernels import norm as norm_module
from quant import uniform_quantize
from tests.helpers import assert_equal, random_ann

DEVICE = torch.device(os.environ.get("KERNEL_DEVICE", "cpu"))
#: How far a total charge in units of θ must be from a whole number for float32 to find the same spikes as float64.
MARGIN = 1e-4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def fail(*_):
    raise AssertionError("the other implementation ran")


@contextlib.contextmanager
def triton_alone() -> Iterator[None]:
    """By Triton, and fail where a norm kernel falls back to torch."""
    with pytest.MonkeyPatch.context() as patch, kernels_by("triton"):
        patch.setattr(norm_module, "norm_scan_reference", fail)
        patch.setattr(norm_module, "norm_count_reference", fail)
        yield


# ---- lif_scan --------------------------------------------------------------------------------------------------------


def lif_both_ways(current: Tensor, rule: LIFRule, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(spikes, gradient) by Triton and by torch."""
    results = []
    for backend, name in (("triton", "LIFScanBackward"), ("torch", "_ScanBackward")):
        x = current.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        with kernels_by(backend):
            spikes = lif_scan(x, rule)
        assert type(spikes.grad_fn).__name__ == name
        (weights * spikes.float()).sum().backward()
        results.append((spikes.detach(), x.grad))
    return results


@pytest.mark.parametrize("surrogate", kernels.SURROGATES)
@pytest.mark.parametrize(("shape", "every"), [((7, 3, 2, 5), 1), ((1, 1, 37), 5), ((15, 1, 601), 5)])
def test_lif_scan(shape, every, surrogate):
    rules = list(enumerate(itertools.product((1.0, 0.8), *[(False, True)] * 3)))
    for seed, (decay, strict, soft, detach) in rules[::every]:
        rule = LIFRule(decay, 0.7, strict, soft, detach, surrogate)
        current = 0.8 * normal(*shape, seed=seed) + 0.3
        (spikes, gradient), (wanted, slope) = lif_both_ways(current, rule, normal(*shape, seed=99))
        assert_equal(spikes, wanted)
        assert wanted.any() and slope.any()
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-5)


def test_lif_scan_at_the_threshold_exactly():
    quarters = torch.randint(-2, 6, (6, 2, 100), generator=torch.Generator().manual_seed(0)).to(DEVICE) / 4
    for strict in (False, True):
        (spikes, _), (wanted, _) = lif_both_ways(quarters, LIFRule(strict=strict), torch.ones_like(quarters))
        assert_equal(spikes, wanted)
        assert bool(spikes[0][quarters[0] == 1].any()) is not strict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lif_scan_of_low_precision(dtype):
    current = (0.8 * normal(4, 2, 30) + 0.3).to(dtype)
    (spikes, gradient), (wanted, slope) = lif_both_ways(current, LIFRule(decay=0.8), normal(4, 2, 30, seed=1))
    assert spikes.dtype == gradient.dtype == dtype
    assert_equal(spikes, wanted)
    torch.testing.assert_close(gradient, slope)


def test_lif_scan_of_other_layouts():
    plain = 0.8 * normal(4, 2, 3, 5, 4) + 0.3
    folded = plain.flatten(0, 1).to(memory_format=torch.channels_last).view(4, 2, 3, 5, 4)
    steps_inside = plain.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    gapped = torch.stack([plain, plain], dim=-1)[..., 0]
    weights = normal(4, 2, 3, 5, 4, seed=1)
    wanted = lif_both_ways(plain, LIFRule(), weights)[1]
    for current in (folded, steps_inside, gapped):
        spikes, gradient = lif_both_ways(current, LIFRule(), weights)[0]
        assert_equal(spikes, wanted[0])
        torch.testing.assert_close(gradient, wanted[1], rtol=1e-5, atol=1e-5)
    with kernels_by("triton"), torch.no_grad():
        assert lif_scan(folded, LIFRule()).stride() == folded.stride()


# ---- fake_quant ------------------------------------------------------------------------------------------------------


def quantized(backend: str, x: Tensor, alpha: Tensor, bits: int, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dalpha)."""
    x, alpha = x.detach().requires_grad_(), leaf(alpha)
    with kernels_by(backend):
        y = kernels.fake_quant(x, alpha, bits, uniform_quantize)
    assert type(y.grad_fn).__name__ == {"triton": "FakeQuantBackward", "torch": "_QuantizeBackward"}[backend]
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad, alpha.grad


@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quant(bits):
    alpha, x, g = torch.tensor(1.3, device=DEVICE), normal(2, 3, 7, 61), normal(2, 3, 7, 61, seed=1)
    # Both ends of the clip, and points half way between two levels.
    ends = torch.tensor([0.0, -0.0, 1.3, float(torch.nextafter(alpha, 2 * alpha))], device=DEVICE)
    halves = (torch.arange(2**bits, device=DEVICE) - 0.5) * 1.3 / (2**bits - 1)
    x.view(-1)[: len(ends) + len(halves)] = torch.cat([ends, halves])
    y, dx, dalpha = quantized("triton", x, alpha, bits, g)
    wanted_y, wanted_dx, _ = quantized("torch", x, alpha, bits, g)
    assert_equal(y, wanted_y)
    assert_equal(dx, wanted_dx)
    # In float64 the levels of the halves may be others: their y is taken from float32, as the formula allows.
    x, g, alpha, y = x.double(), g.double(), alpha.double(), wanted_y.double()
    inside = (x > 0) & (x < alpha)
    exact = (g * (y - torch.where(inside, x, 0)) / alpha).sum()
    torch.testing.assert_close(dalpha.double(), exact, rtol=1e-5, atol=1e-4)


def test_fake_quant_gradients_against_float64():
    x, g, alpha = normal(1500), normal(1500, seed=1), torch.tensor(1.1, device=DEVICE)
    off_ties = ((x * (7 / alpha) + 0.5) - (x * (7 / alpha) + 0.5).round()).abs() > MARGIN
    x, g = x[off_ties], g[off_ties]
    results = quantized("triton", x, alpha, 3, g)
    for result, exact in zip(results, quantized("torch", x.double(), alpha.double(), 3, g.double()), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


def test_fake_quant_keeps_type_layout_and_nan():
    alpha, x = torch.tensor(2.0, device=DEVICE), normal(2, 3, 5, 4).to(memory_format=torch.channels_last)
    g = torch.ones((), device=DEVICE).expand(2, 3, 5, 4)
    assert_equal(quantized("triton", x, alpha, 2, g)[1], quantized("torch", x, alpha, 2, g)[1])
    assert quantized("triton", x, alpha, 2, g)[0].stride() == x.stride()
    for dtype in (torch.bfloat16, torch.float16):
        low = 100 * x.to(dtype)
        y, dx, dalpha = quantized("triton", low, 90 * alpha, 8, g)
        wanted_y, wanted_dx, wanted_dalpha = quantized("torch", low, 90 * alpha, 8, g)
        assert_equal(dx, wanted_dx)
        if DEVICE.type == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts bfloat16 off instead of rounding
            torch.testing.assert_close(y, wanted_y, rtol=2**-7, atol=0)
            torch.testing.assert_close(dalpha, wanted_dalpha, rtol=0.05, atol=0)
        else:
            assert_equal(y, wanted_y)
            torch.testing.assert_close(dalpha, wanted_dalpha, rtol=1e-4, atol=1e-4)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")], device=DEVICE)
    with kernels_by("triton"):
        y = kernels.fake_quant(odd, alpha, 2, uniform_quantize)
    assert y[0].isnan() and y[1:].tolist() == [2, 0]
    _, dx, _ = quantized("triton", odd, alpha, 2, torch.ones_like(odd))
    assert_equal(dx, quantized("torch", odd, alpha, 2, torch.ones_like(odd))[1])


def test_a_network_trains_alike():
    net = random_ann().float().to(DEVICE)
    x, t = normal(2, 3, 4, 4), torch.tensor([1, 9], device=DEVICE)
    results = []
    for backend in ("triton", "torch"):
        net.zero_grad()
        with kernels_by(backend):
            out = net(x, t)
            out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert_equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-4, atol=1e-4)


# ---- norm_scan, norm_count -------------------------------------------------------------------------------------------


def affine(channels: int, groups: int) -> NormRule:
    return NormRule(groups, 1 + 0.3 * normal(channels, seed=7), 0.4 * normal(channels, seed=8) + 0.3)


def double(norm: NormRule) -> NormRule:
    return NormRule(norm.groups, norm.weight.double(), norm.bias.double(), norm.eps)


def scanned(backend, x: Tensor, norm: NormRule, theta: Tensor, rule: IFRule, T: int, cuts: tuple[int, ...], **more):
    """(events of all chunks [L, N, C, H, W], state). backend: a context manager. more: of `Firing.of`."""
    firing = Firing.of(theta, **more)
    state = NormIFState.rest(x[0], norm)
    with backend:
        events = [kernels.norm_scan(chunk, norm, firing, rule, state, T) for chunk in x.split(list(cuts))]
    return torch.cat(events), state


def clear(x: Tensor, norm: NormRule, theta: Tensor, T: int, charge: Tensor | float = 0.5) -> Tensor:
    """Neurons [N, C, H, W] whose charge in float64 keeps `MARGIN` from every threshold."""
    current, _ = cumulative_norm(x.double(), None, double(norm), 0, T)
    total = current.cumsum(0) / theta.double() + charge
    return ((total - total.round()).abs() > MARGIN).all(0)


SCANS = {
    "odd": ((2, 6, 5, 3), 3, 3, (3,)),
    "one sample": ((1, 4, 3, 3), 2, 7, (7,)),
    "one step": ((2, 4, 2, 3), 4, 3, (1,)),
    "15 steps, one group": ((2, 5, 3, 7), 1, 15, (15,)),
    "a group of one channel, columns": ((2, 3, 9, 1), 3, 3, (3,)),
    "chunks, then settling": ((2, 6, 3, 5), 2, 7, (2, 4, 1, 3, 1)),
}


@pytest.mark.parametrize("case", SCANS)
@pytest.mark.parametrize("signed", [True, False])
def test_norm_scan(case, signed):
    shape, groups, T, cuts = SCANS[case]
    x = normal(sum(cuts), *shape, seed=3)
    x[T:] = 0  # the input is off
    norm = affine(shape[1], groups)
    per_channel = 0.5 + torch.rand(shape[1], 1, 1, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for theta, burst in itertools.product((torch.tensor(0.6, device=DEVICE), per_channel), (1, 3)):
        rule = IFRule("bounded", signed, burst=burst)
        events, state = scanned(triton_alone(), x, norm, theta, rule, T, cuts)
        wanted, last = scanned(kernels_by("torch"), x.double(), double(norm), theta.double(), rule, T, cuts)
        sure = clear(x, norm, theta, T)
        assert sure.float().mean() > 0.97
        assert_equal((events * sure).double(), wanted * sure)
        assert wanted.any() and state.steps == last.steps == sum(cuts)
        assert_equal(state.count[sure].double(), last.count[sure])
        torch.testing.assert_close(state.total.double(), last.total, rtol=1e-5, atol=1e-5)


def test_norm_scan_with_charges_and_sizes_of_its_own():
    x, norm, theta = normal(3, 2, 6, 5, 3), affine(6, 2), torch.tensor(0.7, device=DEVICE)
    ramp = torch.linspace(0.1, 0.9, 6, device=DEVICE)[:, None, None]
    for charge, size in ((ramp, None), (0.25, ramp), (ramp, 2 * theta)):
        events, _ = scanned(triton_alone(), x, norm, theta, IFRule(), 3, (2, 1), charge=charge, size=size)
        more = {"charge": charge, "size": size}
        more = {name: value.double() if isinstance(value, Tensor) else value for name, value in more.items()}
        wanted, _ = scanned(kernels_by("torch"), x.double(), double(norm), theta.double(), IFRule(), 3, (2, 1), **more)
        sure = clear(x, norm, theta, 3, charge)
        assert sure.float().mean() > 0.97
        torch.testing.assert_close((events * sure).double(), wanted * sure)


@pytest.mark.parametrize("signed", [True, False])
def test_spikes_as_bytes(signed):
    x, norm, theta, size = normal(3, 2, 6, 5, 3), affine(6, 2), torch.tensor(0.7, device=DEVICE), 0.1
    more, rule, zero = {"size": torch.full_like(theta, size)}, IFRule("bounded", signed, burst=2), 2 * signed
    floats, _ = scanned(triton_alone(), x, norm, theta, rule, 3, (2, 1), **more)
    numbers, _ = scanned(triton_alone(), x, norm, theta, rule, 3, (2, 1), **more, zero=zero)
    assert numbers.dtype == torch.uint8 and (numbers.min() < zero) == signed
    assert_equal(numbers.float() - zero, (floats / size).round())
    firing = Firing.of(theta, zero=0)
    with triton_alone():
        counts = kernels.norm_count(x[0], norm, firing, 255)
        assert counts.dtype == torch.uint8
        assert_equal(counts.float(), kernels.norm_count(x[0], norm, Firing.of(theta), 255))


def test_norm_scan_of_other_layouts_and_types():
    def scan(x: Tensor, *cuts: int) -> Tensor:
        return scanned(triton_alone(), x, norm, theta, IFRule(), 3, cuts)[0]

    x, norm, theta = normal(4, 2, 6, 5, 3), affine(6, 2), torch.tensor(0.7, device=DEVICE)
    sure = clear(x, norm, theta, 3)
    wanted = scan(x, 4)
    folded = x.flatten(0, 1).to(memory_format=torch.channels_last).view(4, 2, 6, 5, 3)
    gapped, transposed = torch.stack([x, x], -1)[..., 0], x.mT.contiguous().mT
    for other in (folded, gapped, transposed):
        for events in (scan(other, 4), scan(other, 3, 1)):
            assert_equal(events * sure, wanted * sure)
    state = NormIFState.rest(x[0], norm)
    with triton_alone():
        events = kernels.norm_scan(folded, norm, Firing.of(theta), IFRule(), state, 3)
    assert events.stride() == folded.stride() and state.total.stride() == folded[0].stride()
    assert_equal(scan(x.bfloat16(), 4), scan(x.bfloat16().float(), 4))


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 4, 1, 1), (3, 4, 7, 9)])
def test_norm_count(shape):
    x, norm = normal(*shape, seed=3), affine(shape[1], 2)
    scale = 1 + torch.rand(shape[1], 1, 1, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for theta, charge, T in itertools.product((scale[0, 0, 0], scale), (0.5, scale / 4), (3, 255)):
        level = T * double(norm).normalize(x.double()) / theta.double() + charge
        sure = (level - level.round()).abs() > MARGIN * T
        with triton_alone():
            firing = Firing.of(theta, charge)
            counts = [kernels.norm_count(y, norm, firing, T) for y in (x, x.mT.contiguous().mT)]
            counts.append(kernels.norm_count(x.to(memory_format=torch.channels_last), norm, firing, T))
            averages = kernels.norm_count(x, norm, Firing.of(theta, charge, scale / T), T)
        for count in counts:
            assert_equal(count[sure].double(), level.floor().clamp(0, T)[sure])
        assert_equal(averages, counts[0] * (scale / T))
        assert counts[0].dtype == torch.float32 and (sure.float().mean() > 0.9 or len(sure) == 1)


# ---- what Triton does not do -----------------------------------------------------------------------------------------


def test_what_triton_cannot_do_is_torchs(monkeypatch):
    from ann2snn.kernels import triton_norm

    monkeypatch.setattr(triton_norm, "norm_scan", fail)
    monkeypatch.setattr(triton_norm, "norm_count", fail)
    x, norm, theta = normal(3, 2, 6, 5, 3), affine(6, 2), torch.tensor(0.7, device=DEVICE)
    with kernels_by("triton"):
        events = kernels.norm_scan(
            x.double(), double(norm), Firing.of(theta.double()), IFRule(), NormIFState.rest(x[0], double(norm)), 3
        )
    assert events.any() and events.dtype == torch.float64
    with kernels_by("triton"):
        assert kernels.norm_count(x[0].double(), double(norm), Firing.of(theta.double()), 3).any()
        current = leaf(x.double())
        assert type(lif_scan(current, LIFRule()).grad_fn).__name__ == "_ScanBackward"
        y = kernels.fake_quant(current, theta.double(), 2, uniform_quantize)
        assert type(y.grad_fn).__name__ == "_QuantizeBackward"
        assert lif_scan(x[:, :0], LIFRule()).shape == (3, 0, 6, 5, 3)


def test_tensors_of_another_shape_are_refused_as_torch_refuses_them():
    """The kernels trust their pointers."""
    x, norm, theta = normal(3, 2, 6, 5, 3), affine(6, 2), torch.tensor(0.7, device=DEVICE)
    for rule, like in ((norm, x[0, :1]), (affine(4, 2), x[0])):
        with kernels_by("triton"), pytest.raises((RuntimeError, ValueError)):
            kernels.norm_scan(x, rule, Firing.of(theta), IFRule(), NormIFState.rest(like, rule), 3)
