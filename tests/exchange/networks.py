"""Networks to write to files, and the inputs on which rounding would show."""

import torch
from torch import nn

import ann2snn
from ann2snn.quant import FirstConv2d, QuantAvgPool2d, QuantConv2d, QuantReLU, QuantSwish, UniformQuantizer


def dyadic(*shape: int) -> torch.Tensor:
    """Few-bit multiples of 1/4 about 0: sums of their products are exact in float32, in any order."""
    return torch.randint(-4, 5, shape) / 4


class Bank(nn.Module):
    """One quantizer of every kind; x [N, 3, S, S] → what each answers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        channels = UniformQuantizer(3, signed=True, channels=3, axis=-3)
        channels.scale.data = torch.tensor([0.5, 0.25, 0.3])
        steps = [UniformQuantizer(4, signed) for signed in (True, False)]
        for quantizer, step in zip(steps, (0.5, 0.1), strict=True):
            quantizer.scale.data.fill_(step)
        fake = torch.ao.quantization.FakeQuantize(quant_min=0, quant_max=255)
        fake.scale.fill_(0.03), fake.zero_point.fill_(100), fake.disable_observer()
        relus = [QuantReLU(2, alpha_init=1.5), QuantReLU(8, alpha_init=3.0), QuantReLU(3, alpha_init=0.7)]
        others = [QuantSwish(4, alpha_init=2.0), QuantAvgPool2d(2, bits=2, alpha_init=1.5)]
        self.kinds = nn.ModuleList([*relus, *others, *steps, channels, fake])
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(quantizer(x) for quantizer in self.kinds)


def halves() -> torch.Tensor:
    """[2, 3, 64, 64]: where levels of dyadic steps change, the float32 numbers beside, and others."""
    ties = torch.arange(-1024, 1024) / 16
    beside = [torch.nextafter(ties, torch.full((), side)) for side in (-9e9, 9e9)]
    some = torch.cat([ties, *beside, torch.randn(2 * 3 * 64 * 64 - 3 * 2048) * 3])
    return some[torch.randperm(len(some), generator=torch.Generator().manual_seed(1))].view(2, 3, 64, 64)


def exact_network() -> nn.Module:
    """Layers whose sums are exact in any order, so that every runtime must agree to the bit; x [N, 2, 4, 4]."""
    torch.manual_seed(0)
    two, first = QuantConv2d(4, 4, 3, bits=2, bias=False), FirstConv2d(2, 4, 3, padding=1, bias=False)
    two.wgt_alpha.data.fill_(0.5)
    first.weight.data = dyadic(*first.weight.shape)
    first.weight.data.view(-1)[0] = 127 / 4  # the step is 1/4
    linear = nn.Linear(4, 5)
    linear.weight.data, linear.bias.data = dyadic(5, 4), dyadic(5)
    signed = UniformQuantizer(4)
    signed.scale.data.fill_(0.25)
    layers = [first, QuantReLU(2, alpha_init=1.5), two, signed, nn.Flatten(2), _Mean(), QuantReLU(4, alpha_init=3.75)]
    return nn.Sequential(*layers, linear).eval()


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 0] + x[..., 1]


def unet(**settings) -> nn.Module:
    torch.manual_seed(0)
    small = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "image_size": 8, "bit": 2}
    net = ann2snn.build_unet(**(small | settings)).eval()
    # These begin as good as silent.
    for layer in [net.tail[-1], *(block.block2[-1] for block in net.modules() if hasattr(block, "block2"))]:
        nn.init.xavier_uniform_(layer.weight)
    return net


def plain_answer(net: nn.Module, *call: torch.Tensor) -> torch.Tensor:
    """What a network answers by torch's own operations, and not by one kernel for a norm and its quantizer."""
    return net(*call).detach()  # a gradient is wanted
