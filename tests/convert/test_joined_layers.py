"""What a spiking network leaves out to be quick changes none of its answers."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.kernels import norm as norm_kernels
from ann2snn.nets import UNet
from ann2snn.nets.parts import FusedReLU, activate
from ann2snn.neurons import IFNeuron
from quant import QuantReLU
from tests.helpers import assert_close, assert_equal, random_ann, random_batch, spike_trains

MODES = {
    "window": {},
    "unsigned": {"signed": False},
    "burst": {"burst": 3},
    "settled": {"settle_steps": 4},
    "settled by itself": {"settle_steps": "auto", "burst": 2},
}
EXACT = 1e-12


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Norms and activations run one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (IFNeuron, FusedReLU):
            patch.setattr(kind, "after_norm", lambda *_: None)
        yield


def uneven(net: UNet) -> UNet:
    """The network with a threshold of its own in every layer and norms that do something."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, QuantReLU):
            module.act_alpha.data.mul_(0.7 + torch.rand((), generator=generator))
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.data.mul_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.data.add_(torch.randn(module.bias.shape, generator=generator) / 3)
    return net


def count_calls(monkeypatch, name: str) -> list[int]:
    calls = [0]
    reference = getattr(norm_kernels, name)

    def counted(*args: object) -> torch.Tensor:
        calls[0] += 1
        return reference(*args)

    monkeypatch.setattr(norm_kernels, name, counted)
    return calls


# ---- norm and neuron as one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spike_driven", [False, True])
@torch.no_grad()
def test_a_norm_and_its_neuron_as_one_send_the_spikes_they_send_one_after_the_other(mode, spike_driven):
    snn = convert(uneven(random_ann(bits=3, spike_driven=spike_driven)), schedule="stream", **MODES[mode])
    for index, (_, neuron) in enumerate(snn.neurons()):
        if index % 3 == 0 and index > 2:
            charges = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
            neuron.charge = torch.nn.Parameter(charges[index % 6])
    batch = random_batch(snn)
    with apart():
        expected, wanted = spike_trains(snn, *batch)
    output, trains = spike_trains(snn, *batch)
    assert_close(output, expected, EXACT)
    assert_close(snn(*batch), expected, EXACT)  # nobody listens: spikes are scaled by the kernel
    assert trains.keys() == wanted.keys() and any(train.any() for train in trains.values())
    for name, train in wanted.items():
        assert_equal(trains[name], train)


@torch.no_grad()
def test_values_per_channel_reach_the_joined_neuron():
    snn = convert(uneven(random_ann(bits=2)), schedule="stream")
    for name, neuron in snn.neurons():
        if "block" in name and "temb" not in name:
            channels = snn.net.get_submodule(name.rpartition(".")[0])[0].num_channels
            neuron.expand((channels, 1, 1), thresholds=True, charges=True)
            neuron.act_alpha.mul_(torch.linspace(0.8, 1.3, channels).to(neuron.act_alpha)[:, None, None])
            neuron.charge.add_(torch.linspace(-0.2, 0.2, channels).to(neuron.charge)[:, None, None])
    batch = random_batch(snn)
    for spiking in (SpikingConfig("stream", burst=2), SpikingConfig()):
        with snn.running_as(spiking):
            with apart():
                expected = snn(*batch)
            assert_close(snn(*batch), expected, EXACT)


@pytest.mark.parametrize("bits", [2, 4, 8])
@torch.no_grad()
def test_counts_and_the_quantized_network_keep_their_last_bit(bits):
    ann = uneven(random_ann(bits=bits)).float()
    snn = convert(ann)
    x, t = random_batch(ann)
    batch = x.float(), t
    with apart():
        expected = ann(*batch)
    assert_equal(ann(*batch), expected)
    assert_equal(snn(*batch), expected)
    assert_equal(spike_trains(snn, *batch)[0], expected)


def test_who_listens_wants_gradients_or_runs_the_published_neuron_has_them_apart(monkeypatch):
    ann = random_ann(bits=2)
    snn = convert(ann, schedule="stream")
    batch = random_batch(ann)
    blocks = [m for m in snn.net.modules() if isinstance(m, torch.nn.GroupNorm)]
    joined = count_calls(monkeypatch, "norm_follow_reference")

    def ran(net: torch.nn.Module) -> int:
        joined[0] = 0
        net(*batch)
        return joined[0]

    assert ran(snn) == ran(ann) == 0  # autograd is on
    with torch.no_grad():
        assert ran(snn) == ran(ann) == len(blocks)
        with snn.running_as(SpikingConfig()):
            assert ran(snn) == len(blocks)
        with snn.running_as(SpikingConfig("stream", stream_norm="per_step", if_neuron="reference")):
            assert ran(snn) == 0
        seen = []
        neuron = snn.net.tail[1]
        for register in (neuron.register_forward_pre_hook, blocks[-1].register_forward_hook):
            handle = register(lambda module, args, *output: seen.append(len(args)))
            assert ran(snn) == len(blocks) - 1 and seen.pop() == 1
            handle.remove()


def test_other_activations_are_left_alone():
    norm, x = torch.nn.GroupNorm(1, 2), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        assert_equal(activate(norm, FusedReLU(32), x), norm(x).relu())
        powers = FusedReLU(3, power=True)
        assert_equal(activate(norm, powers, x), powers(norm(x)))
        assert_equal(activate(torch.nn.Identity(), torch.nn.Identity(), x), x)


@torch.no_grad()
def test_what_is_not_a_number_does_not_look_silent():
    """A broken network must answer with NaN, whether its neurons are joined to their norms or not."""
    for options in ({}, {"schedule": "stream"}, {"schedule": "stream", "settle_steps": "auto"}):
        snn = convert(random_ann(bits=2), **options)
        x, t = random_batch(snn)
        whole = snn(x, t)
        x[0, 0, 0, 0] = torch.nan
        for context in (contextlib.nullcontext, apart):
            with context():
                answer = snn(x, t)
            assert answer[0].isnan().all()
            assert_close(answer[1], whole[1], EXACT)
