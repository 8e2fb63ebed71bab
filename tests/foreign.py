"""Other people's networks, small, and calls of them: (positional arguments, keyword arguments)."""

import functools

import pytest
import torch
from torch import nn

TIMES, LABELS = torch.tensor([10, 500]), torch.tensor([1, 2])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


@functools.cache
def vision():
    return pytest.importorskip("torchvision.models", reason="torchvision is not installed")


def unet(**options):
    torch.manual_seed(0)
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    attention = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8}
    return diffusers().UNet2DModel(**shape, **attention, up_block_types=("AttnUpBlock2D", "UpBlock2D"), **options)


def unet_call():
    return (normal(2, 3, 8, 8), TIMES), {}


def conditional_unet():
    torch.manual_seed(0)
    return diffusers().UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def conditional_call():
    return (normal(2, 4, 8, 8), TIMES), {"encoder_hidden_states": normal(2, 5, 6, seed=1)}


def reads_text(net):
    """The layers of a `conditional_unet` that read the text itself."""
    return {name for name, m in net.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}


def transformer():
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    return diffusers().DiTTransformer2DModel(**shape, in_channels=3, out_channels=3, num_embeds_ada_norm=10)


def transformer_call():
    return (normal(2, 3, 8, 8),), {"timestep": TIMES, "class_labels": LABELS}


def resnet():
    """The first half of ResNet-18."""
    torch.manual_seed(0)
    net = vision().resnet18(num_classes=10)
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(128, 10)
    return net


def vision_transformer():
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    net = vision().VisionTransformer(**shape, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net


SELF_ATTENTION = [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]


def image_call():
    return (normal(2, 3, 16, 16),), {}
