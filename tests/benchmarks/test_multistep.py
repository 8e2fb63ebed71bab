"""The measurement of multistep samplers: of four predictions it is the sampler itself, and levels get finer."""

import pytest
import torch

from ann2snn.config import SampleConfig
from ann2snn.generate.sampling import generate
from ann2snn.quant import QuantReLU
from benchmarks import multistep
from tests.helpers import random_ann


@pytest.mark.parametrize(("lower", "clip"), [(False, True), (True, False)])
def test_four_predictions_are_the_sampler(lower, clip):
    net, line = random_ann(seed=3, in_channels=1), {"calls": 9, "lower_order_final": lower, "clip": clip, "seed": 2}
    images = multistep.images_of(net, line | {"order": 4}, 3)
    expected = generate(net, SampleConfig("pndm", 9, clip=clip, seed=2, lower_order_final=lower), range(3))
    assert torch.equal(images, expected)
    assert not torch.equal(images, multistep.images_of(net, line | {"order": 2}, 3))


def test_more_bits_are_finer_levels_below_the_same_clip():
    net = random_ann(seed=3, in_channels=1)
    layer = next(module for module in net.modules() if isinstance(module, QuantReLU))
    x = torch.linspace(-1, 2, 5001, dtype=torch.float64) * layer.clip().item()
    assert len(layer(x).unique()) == 4
    multistep.with_bits(net, 8)
    assert len(layer(x).unique()) == 256 and layer(x).max() == layer.clip()
