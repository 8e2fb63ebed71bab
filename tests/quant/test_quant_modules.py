"""The modules: parameters, names, full precision, use under autocast, errors."""

import copy
import itertools

import pytest
import torch
from torch import nn

import quant
from quant import weight


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_relu_has_one_parameter_below_full_precision(bits):
    layer = quant.QuantReLU(bits, alpha_init=2.5)
    assert list(layer.state_dict()) == ["act_alpha"]
    assert layer.act_alpha.shape == () and layer.act_alpha.item() == 2.5 and layer.act_alpha.requires_grad
    assert (layer.bits, layer.levels, layer.is_uniform) == (bits, 2**bits - 1, True)
    assert not quant.QuantReLU(bits, power=True).is_uniform
    assert quant.QuantReLU(bits).act_alpha.item() == 6.0


def test_relu_at_full_precision_is_a_relu_that_leaves_its_input_alone():
    layer = quant.QuantReLU(32)
    assert not list(layer.parameters()) and not layer.quantizes and layer.is_uniform
    shared = torch.randn(4, 5, requires_grad=True) * 1.0
    before = shared.detach().clone()
    (layer(shared) + layer(shared)).sum().backward()
    assert torch.equal(shared.detach(), before) and torch.equal(layer(before), before.relu())


@pytest.mark.parametrize("power", [False, True])
def test_a_clip_that_went_negative_stays_usable_and_comes_back(power):
    layer = quant.QuantReLU(2, power=power)
    layer.act_alpha.data.fill_(-0.5)
    x = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.5
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert layer(x).isfinite().all() and layer(x).min() >= 0 and layer.clip().item() == pytest.approx(quant.MIN_SCALE)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().backward()
        optimizer.step()
    assert layer.act_alpha.item() > 0.5


def test_relu_under_autocast_and_in_double_precision():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), quant.QuantReLU(2, alpha_init=1.0), nn.Conv2d(3, 1, 3))
    x = torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and net[1].act_alpha.grad.dtype == torch.float32
    levels = net[1](torch.linspace(-1, 2, 50)).detach().unique()
    torch.testing.assert_close(levels, torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert copy.deepcopy(net).double()(x.double()).dtype == torch.float64


def test_state_dict_round_trip_is_strict():
    a, b = quant.QuantReLU(3, alpha_init=1.25), quant.QuantReLU(3)
    b.load_state_dict(a.state_dict(), strict=True)
    assert b.act_alpha.item() == 1.25
    with pytest.raises(RuntimeError, match="act_alpha"):
        quant.QuantReLU(32).load_state_dict(a.state_dict(), strict=True)


LAYERS = {
    "conv": (quant.QuantConv2d, nn.Conv2d, (4, 6, 3), {"padding": 1, "stride": 2}, (2, 4, 7, 7)),
    "circular conv": (
        quant.QuantConv2d,
        nn.Conv2d,
        (4, 4, 3),
        {"padding": 1, "padding_mode": "circular"},
        (2, 4, 7, 7),
    ),
    "linear": (quant.QuantLinear, nn.Linear, (12, 5), {"bias": False}, (3, 12)),
}
each = pytest.mark.parametrize("name", LAYERS)


@each
def test_weights_at_full_precision_are_the_plain_layer(name):
    quantized, plain, args, kwargs, shape = LAYERS[name]
    torch.manual_seed(0)
    a = quantized(*args, **kwargs)
    torch.manual_seed(0)
    b = plain(*args, **kwargs)
    assert a.state_dict().keys() == b.state_dict().keys() and a.quantized_weight() is a.weight
    x = torch.randn(shape)
    assert torch.equal(a(x), b(x))


@each
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_have_at_most_the_levels_of_their_bits(name, bits, power):
    quantized, plain, args, kwargs, shape = LAYERS[name]
    layer = quantized(*args, **kwargs, bits=bits, power=power)
    assert layer.wgt_alpha.shape == () and layer.wgt_alpha.item() == 3.0
    w = layer.quantized_weight().detach()
    levels = w.unique()
    assert 2 <= len(levels) <= 2**bits - 1 and w.abs().max() <= 3 + 1e-6
    other = plain(*args, **kwargs)
    other.weight.data = w
    if layer.bias is not None:
        other.bias.data = layer.bias.data
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), other(x))
    layer(x).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and layer.wgt_alpha.grad.abs() > 0


@pytest.mark.parametrize("bits", [2, 4])
def test_equal_weights_give_zeros_instead_of_nan(bits):
    layer = quant.QuantConv2d(3, 3, 3, bits=bits)
    nn.init.zeros_(layer.weight)
    assert not layer.quantized_weight().any()
    layer(torch.randn(1, 3, 4, 4)).sum().backward()
    assert layer.wgt_alpha.grad.isfinite()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_weight_clip_that_went_negative_does_not_flip_the_weights(bits):
    layer = quant.QuantLinear(6, 4, bits=bits)
    layer.wgt_alpha.data.fill_(-1.0)
    w = layer.quantized_weight()
    assert (w * (layer.weight - layer.weight.mean()) >= 0).all()
    torch.testing.assert_close(w.abs().max().item(), quant.MIN_SCALE)


def test_a_subclass_sees_the_quantized_weight():
    class Doubled(quant.QuantLinear):
        def forward(self, x):
            return x @ (2 * self.quantized_weight()).T

    layer = Doubled(6, 2, bits=3, bias=False)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), 2 * quant.QuantLinear.forward(layer, x))


def test_modules_print():
    net = nn.Sequential(quant.QuantReLU(2), quant.QuantReLU(3, power=True), quant.QuantConv2d(2, 2, 1, bits=4))
    text = repr(net)
    assert "bits=2, uniform" in text and "additive powers" in text and "bits=4, power=False" in text
    assert "uniform" not in repr(quant.QuantReLU(32))


@pytest.mark.parametrize("bits", [1, 9, 31, 2.5, 32.0, True])
def test_modules_refuse_other_bits(bits):
    for make in (
        lambda: quant.QuantReLU(bits),
        lambda: quant.QuantSwish(bits),
        lambda: quant.QuantAvgPool2d(2, bits=bits),
        lambda: quant.QuantConv2d(2, 2, 1, bits=bits),
        lambda: quant.QuantLinear(2, 2, bits=bits),
    ):
        with pytest.raises(ValueError, match=rf"2, 3, 4, 5, 6, 7, 8, 32 \(an integer\), got {bits!r}"):
            make()


def test_other_refusals():
    with pytest.raises(ValueError, match="alpha_init must be positive, got 0"):
        quant.QuantReLU(2, alpha_init=0.0)
    with pytest.raises(ValueError, match="no standard deviation"):
        quant.QuantLinear(1, 1, bits=4)
    assert quant.QuantLinear(1, 1, bits=32).weight.numel() == 1
    with pytest.raises(AttributeError):
        quant.QuantReLU(32).clip()


# ---- quantized once --------------------------------------------------------------------------------------------------


def test_weights_are_quantized_once_inside_the_context_and_always_outside(monkeypatch):
    net = nn.Sequential(quant.QuantConv2d(2, 4, 3, bits=4, power=True), quant.QuantConv2d(4, 2, 1), nn.Flatten())
    net.append(quant.QuantLinear(2, 3, bits=2))
    x = torch.randn(1, 2, 3, 3)
    expected, first = net(x), net[0](x)
    calls = []
    for kind in (quant.QuantConv2d, quant.QuantLinear):
        quantize = kind._quantize
        monkeypatch.setattr(
            kind, "_quantize", lambda self, w, quantize=quantize: (calls.append(self), quantize(self, w))[1]
        )
    with quant.quantized_once(net):
        assert len(calls) == 2
        with quant.quantized_once(net):
            assert torch.equal(net(x), expected)
        assert torch.equal(net(x), expected) and len(calls) == 2
    with torch.no_grad():
        net[0].weight.neg_()
    assert torch.equal(net[0](x) - net[0].bias[:, None, None], net[0].bias[:, None, None] - first) and len(calls) == 3
    assert net(x).requires_grad and "held" not in net.state_dict()


@pytest.mark.parametrize("keep_scale", [False, True])
def test_whole_numbers_times_a_step_are_the_weight_where_levels_allow_it(keep_scale):
    """Every level of the quantizer is a multiple of the step; the clip is that many steps."""
    found = {}
    for bits, power, additive in itertools.product(range(2, 9), (False, True), (True, False)):
        torch.manual_seed(bits)
        options = {"power": power, "additive": additive, "keep_scale": keep_scale}
        layer = quant.QuantConv2d(16, 32, 3, bits=bits, **options).double()
        nn.init.normal_(layer.weight)  # some are beyond the clip
        whole = layer.whole_weight()
        if whole is not None:
            integers, step = whole
            assert torch.equal(integers, integers.round())
            torch.testing.assert_close(integers * step, layer.quantized_weight(), rtol=1e-12, atol=0)
            found[bits, power, additive] = int(integers.abs().max())
    uniform = {(bits, False, additive): 2 ** (bits - 1) - 1 for bits in range(2, 9) for additive in (True, False)}
    assert {key: found[key] for key in uniform} == uniform
    assert [found.get((bits, True, True)) for bits in range(2, 9)] == [1, 4, 10, 48, 100, 448, 904]
    assert [found.get((bits, True, False)) for bits in range(2, 7)] == [1, 4, 64, 2**14, 2**30]
    assert quant.QuantConv2d(1, 2, 3).whole_weight() is None


def test_what_layers_derive_from_a_weight_is_kept_as_long_where_there_are_many_calls():
    net = quant.QuantLinear(2, 3, bits=3)
    with quant.quantized_once(net):
        assert net.held.derived == {} and torch.equal(net.held.weight, net.quantized_weight())
    with quant.quantized_once(net, many=False):
        assert net.held.derived is None
    assert net.held is None


def test_an_error_inside_the_context_ends_it():
    net = quant.QuantLinear(2, 3, bits=3)
    with pytest.raises(KeyError), quant.quantized_once(net):
        raise KeyError
    assert net.held is None


# ---- normalization of weights ----------------------------------------------------------------------------------------


def test_standardized_weights_have_autograds_gradients():
    w = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weight._Standardize.apply, (w,))
    normalized, std = weight._Standardize.apply(w)
    assert torch.equal(normalized, (w - w.mean()) / w.std()) and torch.equal(std, w.std())
    g, h = torch.randn_like(w), torch.randn((), dtype=torch.float64)
    expected = torch.autograd.grad(((w - w.mean()) / w.std() * g).sum() + w.std() * h, w)
    torch.testing.assert_close(torch.autograd.grad((normalized * g).sum() + std * h, w), expected)


def test_equal_weights_have_gradients_of_a_constant_deviation():
    w = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    normalized, std = weight._Standardize.apply(w)
    assert not normalized.any() and std.item() == weight.MIN_STD
    g = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    (got,) = torch.autograd.grad((normalized * g).sum() + std, w)
    torch.testing.assert_close(got, (g - 0.25) / weight.MIN_STD)
