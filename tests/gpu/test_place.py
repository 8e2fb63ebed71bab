"""Networks of every architecture are laid out for a GPU, which no test here has: its layout is asked for on the CPU."""

import copy

import pytest
import torch

from ann2snn.distributed import runtime
from tests.gpu.networks import CONFIGS, small

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [*CONFIGS, "mlp"])
def test_placed_as_on_a_gpu_every_network_computes_the_same(name, monkeypatch):
    net = small(name)
    plain = copy.deepcopy(net)
    monkeypatch.setattr(runtime, "layout_for", lambda device: torch.channels_last)
    placed = runtime.place(net, CPU)
    assert placed is net
    for parameter in net.parameters():
        assert parameter.is_contiguous(memory_format=torch.channels_last) or parameter.dim() != 4
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        assert torch.allclose(net(x.to(memory_format=torch.channels_last), t), plain(x, t), atol=1e-5)


def test_parameters_stay_the_objects_they_were(monkeypatch):
    net = small("unet")
    before = list(net.parameters())
    net.again = net.head  # tied
    monkeypatch.setattr(runtime, "layout_for", lambda device: torch.channels_last)
    runtime.place(net, CPU)
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert net.again.weight is net.head.weight
