"""Quantizers of packages that are not required: tests that need one skip where it is missing."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from ann2snn.convert import convert
from ann2snn.errors import UserError
from tests.helpers import assert_equal

WAYS = pytest.mark.parametrize("how", [{}, {"schedule": "stream", "settle_steps": "auto"}], ids=["sync", "settled"])


def images(seed=0):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def brevitas_network(**options):
    pytest.importorskip("brevitas", reason="brevitas is not installed")
    qnn = pytest.importorskip("brevitas.nn", reason="brevitas.nn cannot be imported")
    from brevitas.quant import ShiftedUint8ActPerTensorFloat

    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantConv2d(3, 4, 3, weight_bit_width=8),
        qnn.QuantReLU(bit_width=4, **options),
        qnn.QuantConv2d(4, 4, 3, weight_bit_width=8),
        qnn.QuantIdentity(bit_width=4),
        nn.SiLU(),
        qnn.QuantIdentity(ShiftedUint8ActPerTensorFloat, bit_width=3),
        nn.Conv2d(4, 2, 3),
    )
    for seed in range(3):
        net.train()(images(seed))  # collects ranges
    return net.eval()


@WAYS
def test_brevitas_is_exact(how):
    net = brevitas_network()
    snn = convert(net, **how)
    with torch.no_grad(), snn.carrying():
        for seed in range(2):
            assert_equal(snn(images(seed)), net(images(seed)))
    levels = {name: (neuron.levels.lo, neuron.levels.hi) for name, neuron in snn.neurons()}
    assert list(levels) == ["1.act_quant", "3.act_quant", "5.act_quant"]
    assert levels["1.act_quant"] == (0, 15) and levels["3.act_quant"] == (-8, 7)
    low, high = levels["5.act_quant"]
    assert low < 0 < high and high - low == 7
    assert snn.clock.spike_steps == 15  # its weights have more levels
    assert snn.describe().reads_spikes == ("2", "6") and snn.describe().reads_real == ("0",)


def test_brevitas_layers_that_hand_out_quantized_tensors_are_refused_by_name():
    with pytest.raises(UserError, match=r"1\.act_quant: .*return_quant_tensor=False"):
        convert(brevitas_network(return_quant_tensor=True))


def test_torchao_activations_with_ranges_of_their_own_are_listed_as_real():
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao is not installed")
    from ann2snn import quantize

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    net = quantize(net, 3, [(x,)])
    fake = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = qat.IntxFakeQuantizeConfig(torch.int4, group_size=4)
    net[1] = qat.FakeQuantizedLinear.from_linear(net[1], activation_config=fake, weight_config=weights)
    snn = convert(net)
    with pytest.warns(UserWarning, match=r"no neuron can stand.*1\.activation_fake_quantizer"):
        assert_equal(snn(x), net(x))
    assert "1.activation_fake_quantizer" in snn.describe().reads_real
    assert not any("weight" in name for name in snn.describe().reads_real)


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_there_already():
    code = (
        "import sys, torch, ann2snn; from torch import nn; from quant import QuantReLU\n"
        "ann2snn.convert(nn.Sequential(nn.Linear(2, 2), QuantReLU(2)))(torch.zeros(1, 2))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('brevitas', 'torchao')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_quantizer_that_is_switched_off_after_the_conversion_is_refused():
    from torch.ao.quantization import FakeQuantize, disable_fake_quant, disable_observer

    net = nn.Sequential(nn.Conv2d(3, 4, 3), FakeQuantize(), nn.Conv2d(4, 2, 3))
    net(images())
    snn = convert(net.apply(disable_observer))
    snn(images())
    for _, neuron in snn.neurons():
        disable_fake_quant(neuron.quantizer)
    with pytest.raises(UserError, match="a FakeQuantize has been switched off: neurons need its levels"):
        snn(images())
