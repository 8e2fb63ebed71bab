"""Attention: torch's, replaced by an equal one whose projections are modules; ours; and classes that users register."""

import copy

import pytest
import torch
from torch import nn

import ann2snn
from ann2snn import UserError, quantize
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from ann2snn.ptq import attention
from ann2snn.ptq.attention import ProjectedAttention, project
from tests.ptq.test_quantize import normal, sites, without_quantizers

TOLERANCE = {"rtol": 0, "atol": 1e-12}


def projected(module):
    module = copy.deepcopy(module)
    project("attention", module)
    return module


def torch_attention(*args, **options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(*args, **options).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}])
@pytest.mark.parametrize("mask", [None, "bool", "float", "3d"])
@pytest.mark.parametrize("padding", [False, True])
def test_projected_attention_answers_what_torch_answers(batch_first, options, mask, padding):
    module = torch_attention(8, 2, batch_first=batch_first, **options)
    kdim, vdim = options.get("kdim", 8), options.get("vdim", 8)
    q, k, v = normal(3, 5, 8), normal(3, 4, kdim, seed=1), normal(3, 4, vdim, seed=2)
    if not batch_first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    causal = torch.ones(5, 4).triu(1).bool()
    kinds = {"bool": causal, "float": normal(5, 4, seed=3), "3d": normal(6, 5, 4, seed=3) > 1.5, None: None}
    given = {"attn_mask": kinds[mask]}
    if padding:
        given["key_padding_mask"] = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]]).bool()
        if mask == "float":
            given["key_padding_mask"] = given["key_padding_mask"].double() * -3
    for how in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        want, got = module(q, k, v, **given, **how), projected(module)(q, k, v, **given, **how)
        torch.testing.assert_close(got[0], want[0], **TOLERANCE)
        assert (got[1] is None) == (want[1] is None)
        if want[1] is not None:
            torch.testing.assert_close(got[1], want[1], **TOLERANCE)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbatched_and_causal_calls(need_weights):
    module = torch_attention(8, 2)
    x, causal = normal(5, 8), torch.ones(5, 5).triu(1).bool()
    for given in ({}, {"attn_mask": causal, "is_causal": True}, {"key_padding_mask": torch.arange(5) > 3}):
        want = module(x, x, x, need_weights=need_weights, **given)
        for a, b in zip(projected(module)(x, x, x, need_weights=need_weights, **given), want, strict=True):
            assert (a is b is None) or torch.allclose(a, b, **TOLERANCE)
    for net in (module, projected(module)):
        with pytest.raises(RuntimeError, match="attn_mask"):
            net(x, x, x, is_causal=True)


def test_dropout_acts_in_training_alone():
    module = projected(torch_attention(8, 2, dropout=0.5))
    x = normal(5, 3, 8)
    for need_weights in (True, False):
        first, second = (module.train()(x, x, x, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.allclose(first, second)
        assert torch.equal(*(module.eval()(x, x, x, need_weights=need_weights)[0] for _ in range(2)))


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_projections_cannot_do_is_refused_by_name(option):
    net = nn.TransformerEncoderLayer(8, 2, 16)
    net.self_attn = nn.MultiheadAttention(8, 2, **{option: True})
    with pytest.raises(UserError, match=f"self_attn: .*{option}.*skip="):
        quantize(net, 4, [torch.randn(3, 2, 8)])
    assert sites(quantize(net, 4, [torch.randn(3, 2, 8)], skip=["self_attn"]))[0] == ["linear2"]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers_leave_their_fast_path(batch_first, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2).double().eval()
    x, padding = normal(3, 3, 8), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool()
    call = ((x,), {"src_key_padding_mask": padding})
    quantized = quantize(net, 8, [call])
    per_layer = ["self_attn.out_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "linear1", "linear2"]
    inputs = {f"layers.{i}.{name}" for i in range(2) for name in per_layer}
    inputs -= {f"layers.0.self_attn.{part}_proj" for part in "qkv"}  # they read the raw input
    outputs = {f"layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qkv"}
    assert tuple(map(set, sites(quantized))) == (inputs, outputs)
    real = ~padding if batch_first else ~padding.T  # torch's fast path answers 0 for padding
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want, got = net(*call[0], **call[1])[real], without_quantizers(quantized)(*call[0], **call[1])[real]
            torch.testing.assert_close(got, want, **TOLERANCE)
            assert 0 < (quantized(*call[0], **call[1])[real] - want).norm() < 0.05 * want.norm()


def test_encoder_and_decoder_together():
    torch.manual_seed(0)
    net = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).double().eval()
    call = ((normal(2, 5, 8), normal(2, 4, 8, seed=1)), {"tgt_mask": net.generate_square_subsequent_mask(4).double()})
    quantized = quantize(net, 8, [call])
    want = net(*call[0], **call[1])
    torch.testing.assert_close(without_quantizers(quantized)(*call[0], **call[1]), want, **TOLERANCE)
    assert "decoder.layers.0.multihead_attn.q_proj" in sites(quantized)[0]
    assert (quantized(*call[0], **call[1]) - want).norm() < 0.05 * want.norm()


def test_a_skipped_attention_is_left_as_it_is():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for skip in (["self_attn"], [nn.MultiheadAttention]):
        quantized = quantize(net, 8, [torch.randn(2, 3, 8)], skip=skip)
        assert type(quantized.self_attn) is nn.MultiheadAttention and sites(quantized) == (["linear2"], [])


def test_attention_of_our_unet_is_quantized_and_its_parameters_keep_their_names():
    config = AttentionUNetConfig(ch=8, norm_groups=4, ch_mult=(1, 2), attn=(1,), image_size=8, dropout=0.0)
    torch.manual_seed(0)
    net = AttentionUNet(config).double().eval()
    for name, value in net.named_parameters():
        if name.endswith("weight") and value.ndim > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
    call = (normal(2, 3, 8, 8), torch.tensor([50, 700]))
    quantized = quantize(net, 8, [call])
    inputs, outputs = sites(quantized)
    assert {f"middle.1.{name}" for name in ("query", "key", "value")} <= set(outputs)
    assert {"middle.1.project_in", "middle.1.project_out"} <= set(inputs)
    layers = {name for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert layers - set(inputs) == {"embed.0", "in_conv"}
    assert set(net.state_dict()) == {key for key in quantized.state_dict() if "quantizer" not in key}
    want = net(*call)
    assert torch.equal(without_quantizers(quantized)(*call), want)
    assert (quantized(*call) - want).norm() < 0.05 * want.norm()


class Foreign(nn.Module):
    """Attention whose names are its own, one factor with a norm behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Linear(4, 4)
        self.wq, self.wk, self.wv, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.unused = nn.LayerNorm(4)

    def forward(self, x):
        x = self.inside(x)
        return nn.functional.scaled_dot_product_attention(self.norm(self.wq(x)), self.wk(x), self.wv(x))


def test_attention_of_other_classes_can_be_registered(monkeypatch):
    monkeypatch.setattr(attention, "_KNOWN", dict(attention._KNOWN))
    x = torch.randn(2, 3, 4)
    assert sites(quantize(Foreign(), 4, [x]))[1] == []
    ann2snn.register_attention(Foreign, ("wq", "norm"), ("wk", "unused"), "wv", "absent")
    for options in ({}, {"granularity": "channel"}):
        assert sites(quantize(Foreign(), 4, [x], **options))[1] == ["wk", "wv", "norm"]
    assert sites(quantize(Foreign(), 4, [x], skip=["wv"])) == (["wq", "wk"], ["wk", "norm"])


def test_attention_modules_that_never_run_are_named(monkeypatch):
    monkeypatch.setattr(attention, "_KNOWN", dict(attention._KNOWN))
    ann2snn.register_attention(Foreign, "unused")
    with pytest.raises(UserError, match="never calls unused"):
        quantize(Foreign(), 4, [torch.randn(2, 3, 4)])


def test_projected_attention_is_still_torchs_class():
    module = projected(torch_attention(8, 2))
    assert isinstance(module, nn.MultiheadAttention) and type(module) is ProjectedAttention
    assert set(module.state_dict()) == {f"{p}_proj.{w}" for p in ("q", "k", "v", "out") for w in ("weight", "bias")}
