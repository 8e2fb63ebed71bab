"""Properties of the quantizers: where they land, what they leave alone, which gradients they hand back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quant

values = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(lambda v: torch.tensor(v))
scales = st.floats(0.0625, 16, width=32)
all_bits = st.integers(2, 8)

# name → (x, alpha, bits) → y, lower end of the clip
QUANTIZERS = {
    "activation": (lambda x, a, b: quant.uniform_quantize(x, a, b), 0.0),
    "weight": (lambda x, a, b: quant.uniform_quantize(x, a, b, signed=True), -1.0),
    "apot activation": (lambda x, a, b: quant.apot_quantize(x, a, b), 0.0),
    "apot weight": (lambda x, a, b: quant.apot_quantize(x, a, b - 1, signed=True), -1.0),
    # Plain powers of more than 6 bits underflow: 2**-254 is no float32.
    "power activation": (lambda x, a, b: quant.apot_quantize(x, a, min(b, 6), additive=False), 0.0),
    "power weight": (lambda x, a, b: quant.apot_quantize(x, a, min(b - 1, 6), signed=True, additive=False), -1.0),
    "ternary weight": (lambda x, a, b: quant.ternary_quantize(x, a), -1.0),
}
each = pytest.mark.parametrize("name", QUANTIZERS)
fast = settings(max_examples=40, deadline=None, derandomize=True)


@each
@fast
@given(x=values, alpha=scales, bits=all_bits)
def test_idempotent(name, x, alpha, bits):
    f, _ = QUANTIZERS[name]
    once = f(x, alpha, bits)
    assert torch.equal(f(once, alpha, bits), once)


@each
@fast
@given(x=values, alpha=scales, bits=all_bits)
def test_monotone_and_clipped(name, x, alpha, bits):
    f, lower = QUANTIZERS[name]
    y = f(x.sort().values, alpha, bits)
    assert (y.diff() >= 0).all()
    assert y.min() >= lower * alpha * (1 + 1e-6) and y.max() <= alpha * (1 + 1e-6)


@each
@fast
@given(x=values, alpha=scales, bits=all_bits, seed=st.integers(0, 99))
def test_gradients_are_those_of_the_straight_through_composition(name, x, alpha, bits, seed):
    f, lower = QUANTIZERS[name]
    x = x.double()
    # torch's clamp has gradient 0 at its exact ends, as here; off the ends there is nothing to agree on.
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x1, a1 = x.clone().requires_grad_(), torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    f(x1, a1, bits).backward(g)

    x2, a2 = x.clone().requires_grad_(), torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    d = x2 / a2
    inside = (x2.detach() > lower * alpha) & (x2.detach() < alpha)
    d = torch.where(inside, d, d.detach().clamp(lower, 1))
    q = f(x, alpha, bits) / alpha
    (a2 * (d + (q - d).detach())).backward(g)
    torch.testing.assert_close(x1.grad, g if name == "ternary weight" else x2.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(a1.grad, a2.grad, rtol=1e-9, atol=1e-9)


@fast
@given(x=values, alpha=scales, bits=all_bits)
def test_uniform_levels_are_the_nearest_integers(x, alpha, bits):
    top = 2**bits - 1
    k = quant.uniform_levels(x, alpha, bits)
    assert torch.equal(k, k.round()) and k.min() >= 0 and k.max() <= top
    exact = (x.double() * top / alpha).clamp(0, top)
    assert (k - exact).abs().max() <= 0.5 + 1e-5 * top


@fast
@given(x=values, alpha=scales, bits=all_bits)
def test_counts_reproduce_the_quantized_activation_bit_for_bit(x, alpha, bits):
    y = quant.uniform_quantize(x, alpha, bits)
    assert torch.equal(quant.uniform_values(quant.uniform_levels(x, alpha, bits), alpha, bits), y)
    layer = quant.QuantReLU(bits, alpha_init=alpha)
    assert torch.equal(quant.uniform_values(quant.uniform_levels(x, layer.clip(), bits), layer.clip(), bits), layer(x))


@pytest.mark.parametrize("bits", range(2, 9))
def test_level_is_the_spike_count_of_an_integrate_and_fire_neuron(bits):
    steps = 2**bits - 1
    x = torch.arange(-64, 1400, dtype=torch.float64) / 1024  # dyadic: sums are exact, so that ties are ties
    membrane, count = torch.full_like(x, 0.5), torch.zeros_like(x)
    for _ in range(steps):
        membrane += x
        fired = (membrane >= 1).double()
        membrane -= fired
        count += fired
    assert torch.equal(quant.uniform_levels(x, 1.0, bits), count)


def test_ties_round_up():
    x = torch.tensor([-0.5, 0.5, 1.5, 2.5, 3.5])
    assert quant.uniform_levels(x, 3.0, 2).tolist() == [0, 1, 2, 3, 3]
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quant.uniform_quantize(x, 3.0, 3, signed=True).tolist() == [-2, -1, 0, 1, 2, 3]
    assert quant.ternary_quantize(torch.tensor([-0.5, 0.5]), 1.0).tolist() == [0, 1]
    x = torch.tensor([-0.75, -0.125, 0.125, 0.375, 0.75])
    assert quant.apot_quantize(x, 1.0, 2, signed=True).tolist() == [-0.5, 0, 0.25, 0.5, 1]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("additive", [True, False])
def test_power_levels_are_distinct_ascending_and_reach_one(bits, additive):
    levels = quant.power_levels(bits, additive)
    assert len(levels) == len(set(levels)) == 2**bits
    assert levels == tuple(sorted(levels)) and levels[0] == 0 and levels[-1] == 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_level_looked_up_is_the_nearest_one(bits, additive, signed, dtype):
    """Against the distances to all levels, away from the boundaries, where rounding decides."""
    levels = torch.tensor(quant.power_levels(bits, additive), dtype=torch.float64)
    levels = torch.cat([-levels[1:].flip(0), levels]) if signed else levels
    x = torch.empty(4000, dtype=dtype).uniform_(-1.2, 1.2, generator=torch.Generator().manual_seed(bits))
    distances = (x.double()[:, None] - levels).abs()
    two = distances.topk(2, largest=False).values
    clear = two[:, 1] - two[:, 0] > 1e-5
    assert clear.float().mean() > 0.4  # below 0, unsigned levels are all as far as their smallest ones
    got = quant.apot_quantize(x, 1.0, bits, signed=signed, additive=additive)
    assert torch.equal(got[clear], levels[distances.argmin(1)].to(dtype)[clear])
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    got = quant.apot_quantize(odd, 1.0, bits, signed=signed, additive=additive)
    assert got[0].isnan() and got[1:].tolist() == [1, -1 if signed else 0]


def test_additive_levels_by_hand():
    assert quant.power_levels(3) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1])
    # 7 bits: terms {0, 1, 1/8, 1/128}, {0, 1/2, 1/16, 1/256}, {0, 1/4, 1/32, 1/512}, {0, 1/64}; largest sum 1.765625.
    assert quant.power_levels(7)[1] == pytest.approx(2**-9 / 1.765625)
    assert quant.power_levels(7)[-2] == pytest.approx(1.75 / 1.765625)


@each
def test_nan_stays_nan(name):
    y = QUANTIZERS[name][0](torch.tensor([float("nan"), 1.0]), 1.0, 3)
    assert y.isnan().tolist() == [True, False]


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_gradients_are_finite(name, dtype):
    x = torch.linspace(-3, 3, 301).to(dtype).requires_grad_()
    alpha = torch.tensor(1.7, requires_grad=True)
    y = QUANTIZERS[name][0](x, alpha, 4)
    y.backward(torch.linspace(0, 1, 301).to(dtype))
    assert y.dtype == x.grad.dtype == dtype and alpha.grad.dtype == torch.float32
    # Half precision is quantized in float32: only the result is rounded to the narrow type.
    wide = QUANTIZERS[name][0](x.detach().to(torch.promote_types(dtype, torch.float32)), alpha.detach(), 4)
    assert torch.equal(y, wide.to(dtype))
    assert alpha.grad.isfinite() and alpha.grad != 0


def test_eight_bits_survive_bfloat16():
    x = torch.linspace(0, 1, 1000).bfloat16()
    assert torch.equal(quant.uniform_levels(x, 1.0, 8), torch.floor(x.double() * 255 + 0.5).float())


@each
def test_channels_last_is_kept(name):
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        xi = x.clone(memory_format=layout).requires_grad_()
        alpha = torch.tensor(1.2, requires_grad=True)
        y = QUANTIZERS[name][0](xi, alpha, 3)
        y.backward(g)  # contiguous in both cases: the gradient's layout is not ours to choose
        assert y.is_contiguous(memory_format=layout)
        results.append((y.detach(), xi.grad, alpha.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2])


@each
def test_empty_and_zero_dimensional_inputs(name):
    f, _ = QUANTIZERS[name]
    assert f(torch.empty(0, 3), 1.0, 3).shape == (0, 3)
    x = torch.tensor(0.4, requires_grad=True)
    f(x, 1.0, 3).backward()
    assert x.grad == 1


def test_grad_scale_multiplies_only_alphas_gradient():
    x = torch.linspace(-1, 2, 50)
    grads = []
    for s in (None, 0.25):
        xi, alpha = x.clone().requires_grad_(), torch.tensor(1.3, requires_grad=True)
        quant.uniform_quantize(xi, alpha, 3, grad_scale=s).sum().backward()
        grads.append((xi.grad, alpha.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[1][1], grads[0][1] * 0.25)
    assert quant.lsq_gradient_scale(100, 4) == pytest.approx(0.05)


def test_positive_scale_holds_the_value_but_not_the_gradient():
    a = torch.tensor([2.0, 0.0, -3.0, float("nan")], requires_grad=True)
    y = quant.positive_scale(a)
    y.sum().backward()
    assert y[:3].tolist() == pytest.approx([2, quant.MIN_SCALE, quant.MIN_SCALE]) and y[3].isnan()
    assert a.grad.tolist() == [1, 1, 1, 1]


def test_absmax_quantize():
    x = torch.tensor([-2.0, 0.5, 1.0], requires_grad=True)
    y = quant.absmax_quantize(x, bits=8)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(y.detach(), torch.tensor([-127.0, 32.0, 64.0]) * 2 / 127)
    assert x.grad.tolist() == [1, 2, 3]
    assert quant.absmax_quantize(torch.zeros(4)).tolist() == [0] * 4
    with pytest.raises(ValueError, match="at least one value"):
        quant.absmax_quantize(torch.empty(0))


def test_second_derivatives_are_refused():
    # The straight-through gradient is not the derivative of anything: better an error than a wrong number.
    x, alpha = torch.rand(4).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    (dx,) = torch.autograd.grad((quant.uniform_quantize(x, alpha, 2) * x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -2, 2.0, 2.5, True, None])
def test_bits_that_do_not_exist(bits):
    x = torch.ones(3)
    for call in (
        lambda: quant.check_bits(bits),
        lambda: quant.uniform_levels(x, 1.0, bits),
        lambda: quant.uniform_values(x, 1.0, bits),
        lambda: quant.uniform_quantize(x, 1.0, bits),
        lambda: quant.absmax_quantize(x, bits),
    ):
        with pytest.raises(ValueError, match=f"got {bits!r}") as error:
            call()
        assert "\n" not in str(error.value) and "8" in str(error.value)
    if bits != 1 or bits is True:  # one bit of magnitude is a 2-bit weight
        with pytest.raises(ValueError, match=f"1 to 8, got {bits!r}"):
            quant.apot_quantize(x, 1.0, bits)
        with pytest.raises(ValueError, match=f"1 to 8, got {bits!r}"):
            quant.power_levels(bits)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_a_number_as_alpha_must_be_positive(alpha):
    for call in (quant.uniform_levels, quant.uniform_quantize, quant.apot_quantize):
        with pytest.raises(ValueError, match="alpha must be positive"):
            call(torch.ones(3), alpha, 2)


def test_a_vector_as_learned_alpha_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        quant.uniform_quantize(torch.ones(2, 3), torch.ones(3), 2)
