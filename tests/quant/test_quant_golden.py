"""Every array of quant_functions.npz and quant_layers.npz, made by the reference implementation.

Tolerances: values 1e-6 (absolute and relative). Sums of products (alpha's and the weights' gradients, layer outputs)
were added up in another order in float32: 2e-6 of the largest value, and 2e-5 absolute for alpha's gradient, whose
terms cancel.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import quant
from quant import functional as Q

GOLDEN = Path(__file__).parents[1] / "golden"
FUNCTIONS = dict(np.load(GOLDEN / "quant_functions.npz"))
LAYERS = dict(np.load(GOLDEN / "quant_layers.npz"))


def groups(arrays):
    """Case name → {array name: tensor}; the inputs and the level lists are not cases."""
    cases = defaultdict(dict)
    for key, value in arrays.items():
        case, name = key.rsplit("/", 1)
        if not key.startswith(("in/", "power_value/")):
            cases[case][name] = torch.tensor(value)
    return dict(cases)


FUNCTION_CASES, LAYER_CASES = groups(FUNCTIONS), groups(LAYERS)


def option(case, pattern, default=None):
    found = re.search(rf"(?:^|/){pattern}(?:/|$)", case)
    return found.group(1) if found else default


def assert_matches(got, want, case):
    assert got.keys() == want.keys(), case  # no array of the file stays unread
    for name, w in want.items():
        g = got[name].detach()
        assert g.shape == w.shape and g.dtype == w.dtype, f"{case}/{name}"
        if name in ("weight_q", "dbias") or case in FUNCTION_CASES and name != "dalpha":
            rtol, atol = 1e-6, 1e-6
        else:
            rtol, atol = 1e-6, 2e-6 * w.abs().max().item() + (2e-5 if name == "dalpha" else 0)
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{case}/{n}: {m}")


def gradients(function, x, g, alpha):
    x = torch.tensor(x).requires_grad_()
    alpha = torch.tensor(alpha, requires_grad=True)
    y = function(x, alpha)
    y.backward(torch.tensor(g))
    return {"y": y, "dx": x.grad, "dalpha": alpha.grad}


def quantizer(case):
    """The function (x, alpha) → y that a case of quant_functions.npz was made with."""
    family, _, rest = case.partition("/")
    gs = 0.1 if "gs0.1" in case else None
    signed = rest.startswith("w/")
    if family.startswith("uniform"):
        bits = int(option(case, r"bit(\d+)"))
        return lambda x, a: quant.uniform_quantize(x, a, bits, signed=signed, grad_scale=gs)
    if family.startswith("apot"):
        bits, additive = int(option(case, r"B(\d)")), option(case, r"add(\d)") == "1"
        return lambda x, a: quant.apot_quantize(x, a, bits, signed=signed, additive=additive, grad_scale=gs)
    assert family == "uq", case
    return lambda x, a: quant.ternary_quantize(x, a, grad_scale=gs)


def activation(case):
    bits = int(option(case, r"bit(\d+)"))
    options = {"power": option(case, r"power(\d)") == "1", "additive": option(case, r"add(\d)", "1") == "1"}
    if case.startswith("QuantAvgPool2d"):
        layer = quant.QuantAvgPool2d(2, 2, bits=bits, **options)
    else:
        layer = getattr(quant, case.split("/")[0])(bits, **options)
    if bits < 32:
        layer.act_alpha.data.fill_(float(option(case, r"alpha([\d.]+)")))
    return layer


@pytest.mark.parametrize("case", [c for c in FUNCTION_CASES if not c.startswith(("Quant", "uniform_ties"))])
def test_function(case):
    alpha = float(option(case, r"alpha([\d.]+)"))
    assert_matches(gradients(quantizer(case), FUNCTIONS["in/x"], FUNCTIONS["in/g"], alpha), FUNCTION_CASES[case], case)


@pytest.mark.parametrize("case", [c for c in FUNCTION_CASES if c.startswith("uniform_ties")])
def test_ties_go_up_where_the_reference_goes_to_even(case):
    x, g, want = FUNCTIONS["in/ties"], FUNCTIONS["in/g_ties"], FUNCTION_CASES[case]
    bits, signed = int(option(case, r"bit(\d+)")), "/w/" in case
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    v = np.clip(x, -1 if signed else 0, 1) * np.float32(levels)
    tie_to_even_went_down = torch.tensor((v - np.floor(v) == 0.5) & (np.floor(v) % 2 == 0))
    assert tie_to_even_went_down.any()

    got = gradients(quantizer(case), x, g, 1.0)
    torch.testing.assert_close(got["y"], want["y"] + tie_to_even_went_down / levels, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got["dx"], want["dx"], rtol=1e-6, atol=0)
    moved = (torch.tensor(g) * tie_to_even_went_down).sum() / levels
    torch.testing.assert_close(got["dalpha"], want["dalpha"] + moved, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in FUNCTION_CASES if c.startswith("Quant")])
def test_activation(case):
    layer = activation(case)
    x = torch.tensor(FUNCTIONS["in/xa"]).requires_grad_()
    y = layer(x)
    y.backward(torch.tensor(FUNCTIONS["in/ga_pool" if "Pool" in case else "in/ga"]))
    got = {"y": y, "dx": x.grad}
    if layer.quantizes:
        got["dalpha"] = layer.act_alpha.grad
    assert_matches(got, FUNCTION_CASES[case], case)


@pytest.mark.parametrize("key", [k for k in FUNCTIONS if k.startswith("power_value/")])
def test_power_levels(key):
    # The reference lists them in the order of a Python set; as sets they are equal.
    got = quant.power_levels(int(option(key, r"B(\d)")), additive=key.endswith("add1"))
    np.testing.assert_allclose(got, np.sort(FUNCTIONS[key]), rtol=1e-6, atol=0)


def layer_of(case):
    conv = case.startswith(("QuantConv2d", "first_conv"))
    args, kwargs = ((4, 6, 3), {"padding": 1}) if conv else ((12, 5), {})
    if case in ("first_conv", "last_fc"):
        return (quant.FirstConv2d if conv else quant.LastLinear)(*args, **kwargs)
    layer = (quant.QuantConv2d if conv else quant.QuantLinear)(
        *args,
        **kwargs,
        bits=int(option(case, r"bit(\d+)")),
        power=option(case, r"power(\d)") == "1",
        additive=option(case, r"add(\d)") == "1",
        grad_scale=0.1 if "gs0.1" in case else None,
    )
    if layer.bits < 32:
        layer.wgt_alpha.data.fill_(float(option(case, r"alpha([\d.]+)")))
    return layer


def run_layer(case):
    layer, kind = layer_of(case), "c" if "onv" in case else "l"
    layer.weight.data, layer.bias.data = torch.tensor(LAYERS[f"in/w{kind}"]), torch.tensor(LAYERS[f"in/b{kind}"])
    x = torch.tensor(LAYERS[f"in/x{kind}"]).requires_grad_()
    y = layer(x)
    y.backward(torch.tensor(LAYERS[f"in/g{kind}"]))
    got = {"y": y, "dx": x.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}
    got["weight_q"] = layer.quantized_weight()
    if getattr(layer, "bits", 32) < 32:
        got["dalpha"] = layer.wgt_alpha.grad
    return layer, got


NAN_CASES = [c for c in LAYER_CASES if "bit8/power1/add1" in c]


@pytest.mark.parametrize("case", [c for c in LAYER_CASES if c not in NAN_CASES and c != "last_fc"])
def test_layer(case):
    assert_matches(run_layer(case)[1], LAYER_CASES[case], case)


@pytest.mark.parametrize("case", NAN_CASES)
def test_layer_where_the_reference_is_nan(case):
    """The reference has no additive levels for 7 magnitude bits; here `power_levels` defines them."""
    want = LAYER_CASES[case]
    assert want["weight_q"].isnan().all() and want["y"].isnan().all()
    layer, got = run_layer(case)
    assert all(v.isfinite().all() for v in got.values())
    clean = [n for n in want if not want[n].isnan().any()]
    assert_matches({n: got[n] for n in clean}, {n: want[n] for n in clean}, case)
    weight = (layer.weight - layer.weight.mean()) / layer.weight.std()
    grid = torch.tensor(quant.power_levels(7)) * layer.wgt_alpha.detach()
    grid = torch.cat([-grid, grid])
    nearest = grid[(weight.detach().reshape(-1, 1) - grid).abs().argmin(1)].view_as(weight)
    torch.testing.assert_close(got["weight_q"].detach(), nearest, rtol=1e-5, atol=1e-6)


def test_last_layer_does_not_copy_the_maximum_for_absolute_maximum_mistake():
    """The reference scales by max(w): here the largest weight is negative, and its levels go down to -168, not -127."""
    want, (layer, got) = LAYER_CASES["last_fc"], run_layer("last_fc")
    weight = layer.weight.detach()
    assert weight.abs().max() > weight.max()
    wrong_levels = want["weight_q"] * 127 / weight.max()
    torch.testing.assert_close(wrong_levels, torch.floor(weight * 127 / weight.max() + 0.5), rtol=0, atol=1e-4)
    assert wrong_levels.min() < -127.5

    scale = weight.abs().max() / 127
    levels = got["weight_q"].detach() / scale
    torch.testing.assert_close(levels, torch.floor(weight / scale + 0.5), rtol=0, atol=1e-4)
    assert levels.abs().max().round() == 127
    # What does not pass through the quantized weight is the reference's.
    assert_matches({n: got[n] for n in ("dweight", "dbias")}, {n: want[n] for n in ("dweight", "dbias")}, "last_fc")
    x, g = torch.tensor(LAYERS["in/xl"]), torch.tensor(LAYERS["in/gl"])
    torch.testing.assert_close(got["y"].detach(), torch.nn.functional.linear(x, levels * scale, layer.bias))
    torch.testing.assert_close(got["dx"], g @ (levels * scale))


def test_minimum_scale_is_below_every_golden_clip():
    # Else the arrays above would say nothing about the clip in use.
    assert Q.MIN_SCALE < 0.5
