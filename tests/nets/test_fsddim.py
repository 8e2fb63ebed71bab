"""FSDDIM against the golden forward pass of the published program, its sizes and its names."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ann2snn.errors import UserError
from ann2snn.kernels import SURROGATES, LIFRule, lif_scan
from ann2snn.nets.fsddim import FSDDIM, DownSample, FSDDIMBlock, FSDDIMConfig, SpikingConv, UpSample, time_features
from ann2snn.nets.parts import BatchDropout
from ann2snn.neurons import LIFNeuron, StepBatchNorm
from tests.fill import deterministic_fill
from tests.helpers import assert_equal

SMALL = FSDDIMConfig(in_channels=1, image_size=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, spike_steps=4)
TIMES = torch.tensor([3, 900])


def small(**options) -> FSDDIM:
    net = FSDDIM(replace(SMALL, **options)).eval()
    deterministic_fill(net)
    return net


def batch() -> torch.Tensor:
    return 1.5 * torch.sin(0.05 * torch.arange(128.0)).view(2, 1, 8, 8)


def over_steps(x: torch.Tensor, steps: int = 4) -> torch.Tensor:
    return torch.cat([x] * steps)


class Rates:
    """Monitor that keeps every layer's share of spikes, and that they are spikes."""

    def __init__(self):
        self.rates = []

    def record(self, neuron, events, is_count):
        assert not is_count and ((events == 0) | (events == 1)).all()
        self.rates.append(float(events.mean()))


# ---- the forward pass -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_golden_forward():
    net, rates = FSDDIM(SMALL).eval(), Rates()
    assert len(deterministic_fill(net)) == 180
    with net.monitored(rates):
        currents = net(over_steps(batch()), TIMES)
    assert currents.shape == (8, 1, 8, 8)
    published = currents.view(4, 2, 1, 8, 8).permute(1, 2, 3, 4, 0)  # time innermost
    first = [0.047971, 0.591267, 0.266056, 0.478813, 0.311899, 0.430100]
    assert published.flatten()[:6].tolist() == pytest.approx(first, abs=1e-5)
    assert float(published.sum()) == pytest.approx(-27.97649, abs=1e-4)
    assert float(published.abs().sum()) == pytest.approx(141.40582, abs=1e-4)
    assert len(rates.rates) == 24 and sum(rates.rates) / 24 == pytest.approx(0.093740, abs=1e-6)
    decoded = net(batch(), TIMES)
    assert decoded.flatten()[:3].tolist() == pytest.approx([0.346027, 0.440462, 0.582479], abs=1e-5)
    assert float(decoded.sum()) == pytest.approx(-6.99412, abs=1e-4)


@torch.no_grad()
def test_an_image_is_a_constant_current_and_the_mean_of_the_answer():
    net, x = small(num_res_blocks=2).double(), batch().double()
    currents = net(over_steps(x), TIMES)
    torch.testing.assert_close(net(x, TIMES), currents.view(4, 2, 1, 8, 8).mean(0), rtol=0, atol=1e-12)
    assert float(currents.view(4, 2, 1, 8, 8).var(0).max()) > 1e-3, "the currents differ from step to step"
    once = small(spike_steps=1)
    assert once(x.float(), TIMES).shape == x.shape
    for rows in (1, 3, 4, 6, 16):
        with pytest.raises(ValueError, match=f"{rows} rows for 2 times"):
            net(torch.zeros(rows, 1, 8, 8, dtype=torch.float64), TIMES)


@torch.no_grad()
def test_scaled_norms_are_plain_ones_with_other_weights():
    scaled, plain = small(norm="scaled", threshold=1.3), small(threshold=1.3)
    assert list(scaled.state_dict()) == list(plain.state_dict())
    assert not torch.allclose(scaled(batch(), TIMES), plain(batch(), TIMES), atol=0.05)
    gains = {name: m.gain for name, m in scaled.named_modules() if isinstance(m, StepBatchNorm)}
    branches = [name for name in gains if "conv2.bn" in name or "nin_shortcut" in name]
    assert len(branches) == 14 and all(gains[name] == pytest.approx(1.3 * 0.5**0.5) for name in branches)
    assert {gain for name, gain in gains.items() if name not in branches} == {1.3}
    for name, gain in gains.items():
        plain.get_submodule(name).weight *= gain
    torch.testing.assert_close(plain(batch(), TIMES), scaled(batch(), TIMES), rtol=0, atol=1e-5)


@torch.no_grad()
def test_only_linear_maps_between_blocks_are_real_valued():
    net, binary = small(num_res_blocks=2, ch_mult=(1, 2, 2)), {}

    def look(name):
        return lambda module, args, out: binary.update({name: bool(((out == 0) | (out == 1)).all())})

    for name, module in net.named_modules():
        if isinstance(module, (FSDDIMBlock, SpikingConv, DownSample, UpSample, LIFNeuron)) or name in REAL:
            module.register_forward_hook(look(name))
    net(batch(), TIMES)
    real = {name for name, is_binary in binary.items() if not is_binary}
    assert real == {*REAL, "downs.0.2", "downs.1.2", "ups.0.2", "ups.1.2"}
    assert {"downs.2.2", "ups.2.2", "mid_block1", "final_res_block", "temb_neuron"} <= set(binary) - real


REAL = ("conv_in", "temb.1", "conv_out")


# ---- time ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_time_features_are_the_published_table_and_more():
    row = [0.841471, 0.540302, 0.046399, 0.998923, 0.002154, 0.999998, 0.0001, 1.0]
    assert time_features(torch.tensor([1]), 8)[0].tolist() == pytest.approx(row, abs=1e-6)
    net = small()
    assert net.pe.shape == (1000, 16)
    assert_equal(time_features(torch.tensor([0.0, 7.0, 999.0]), 16), net.pe[[0, 7, 999]])
    angles = [3.5 * math.exp(-i * math.log(10000) / 7) for i in range(8)]
    waves = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    assert time_features(torch.tensor([3.5]), 16)[0].tolist() == pytest.approx(waves, abs=1e-6)
    assert_equal(net(batch(), TIMES.double()), net(batch(), TIMES))


# ---- neurons ---------------------------------------------------------------------------------------------------------


def spikes(current: list[float], **changes) -> list[int]:
    rule = replace(FSDDIMConfig().rule, **changes)
    return lif_scan(torch.tensor(current, dtype=torch.float64)[:, None], rule)[:, 0].int().tolist()


def test_neurons_are_the_published_ones():
    rule = FSDDIMConfig().rule
    assert rule == LIFRule(0.8, 1.0, strict=True, soft_reset=False, detach_reset=True, surrogate="triangle")
    assert all(neuron.rule == rule for _, neuron in small().neurons())
    for constant in (0.6, 1.0):  # exactly the threshold does not fire
        assert spikes([constant] * 8) == [0, 1, 0, 1, 0, 1, 0, 1]
    assert sum(spikes([0.2] * 500)) == 0 and spikes([0.21] * 14) == [0] * 13 + [1]
    x = [0.3, 0.9, -0.5, 1.6, 0.8, 0.9]
    assert spikes(x) == [0, 1, 0, 1, 0, 1] and spikes(x, soft_reset=True) == [0, 1, 0, 1, 1, 0]
    current = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (lif_scan(current[:, None], rule)[:, 0] * torch.arange(1, 7)).sum().backward()
    assert current.grad.tolist() == pytest.approx([1.152, 1.44, 1.92, 2.4, 3.0, 0.0])
    u = torch.tensor([0.4, 0.6, 0.99, 1.0, 1.25, 1.5], dtype=torch.float64)
    assert SURROGATES[rule.surrogate](u - 1).tolist() == pytest.approx([0, 0.2, 0.98, 1, 0.5, 0])


# ---- sizes and names -------------------------------------------------------------------------------------------------


def published_keys(c: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of everything in the published file, in its own words."""
    keys: dict[str, tuple[int, ...]] = {"pe": (1000, 128)}

    def layer(name: str, *shape: int) -> None:
        keys.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def norm(name: str, n: int) -> None:
        layer(name, n)
        keys.update({f"{name}.running_mean": (n,), f"{name}.running_var": (n,), f"{name}.num_batches_tracked": ()})

    def block(name: str, c_in: int, c_out: int) -> None:
        layer(f"{name}.conv1", c_out, c_in, 3, 3, 1)
        layer(f"{name}.temb_proj", c_out, 512)
        layer(f"{name}.conv2", c_out, c_out, 3, 3, 1)
        norm(f"{name}.bn1", c_out)
        norm(f"{name}.conv2.bn", c_out)
        if c_in != c_out:
            layer(f"{name}.nin_shortcut", c_out, c_in, 1, 1, 1)
        norm(f"{name}.nin_shortcut" + (".bn" if c_in != c_out else ""), c_out)

    layer("temb.0", 512, 128)
    layer("temb.1", 512, 512)
    layer("conv_in", 128, c, 3, 3, 1)
    layer("conv_out", c, 768, 1, 1, 1)
    down, up = [128, 128, 256, 384], [896, 640, 384, 256]
    for i, (width, c_in, c_out) in enumerate(zip(down, up, [512, 384, 256, 128], strict=True)):
        for j in (0, 1):
            block(f"downs.{i}.{j}", width, width)
            block(f"ups.{i}.{j}", c_in, c_out)
    for name in ("mid_block1", "mid_block2"):
        block(name, 512, 512)
    block("final_res_block", 256, 128)
    for i, (c_in, c_out) in enumerate([(128, 128), (128, 256), (256, 384)]):
        layer(f"downs.{i}.2.conv.1", c_out, c_in, 1, 1, 1)
    for i, (c_in, c_out) in enumerate([(512, 384), (384, 256), (256, 128)]):
        layer(f"ups.{i}.2.conv", c_out, c_in, 3, 3, 1)
    layer("downs.3.2", 512, 384, 3, 3, 1)
    norm("downs.3.2.bn", 512)
    layer("ups.3.2", 128, 128, 3, 3, 1)
    norm("ups.3.2.bn", 128)
    return keys


@pytest.mark.parametrize(("channels", "size"), [(1, 52_536_705), (3, 52_540_547)])
def test_sizes_and_names_are_the_published_ones(channels, size):
    with torch.device("meta"):
        net = FSDDIM(FSDDIMConfig(in_channels=channels))
    state = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert state == published_keys(channels) and len(state) == 452
    assert sum(p.numel() for p in net.parameters()) == size
    kinds = [type(module) for module in net.modules()]
    assert (kinds.count(LIFNeuron), kinds.count(StepBatchNorm), kinds.count(FSDDIMBlock)) == (60, 59, 19)


@torch.no_grad()
def test_larger_images_and_fewer_steps():
    with torch.device("meta"):
        net = FSDDIM(FSDDIMConfig(image_size=64, spike_steps=4)).eval()
        t = torch.zeros(2, dtype=torch.long)
        assert net(torch.zeros(2, 3, 64, 64), t).shape == (2, 3, 64, 64)
        assert net(torch.zeros(8, 3, 64, 64), t).shape == (8, 3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, "--decay=0.0"),
        ({"decay": 1.5}, "--decay=1.5"),
        ({"decay": math.nan}, "--decay=nan"),
        ({"decay": "fast"}, "--decay=fast"),
        ({"soft_reset": 1}, "--soft_reset=1"),
        ({"detach_reset": None}, "--detach_reset=None"),
        ({"norm": "layer"}, "--norm=layer: use one of plain, scaled"),
        ({"norm": ["plain"]}, "--norm="),
        ({"spike_steps": 0}, "--timestep=0"),
        ({"image_size": 36}, "--img_size=36"),
    ],
)
def test_settings_that_make_no_network_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        FSDDIMConfig(**options)


def test_settings_survive_storing():
    config = FSDDIMConfig(decay=0.5, soft_reset=True, detach_reset=False, norm="scaled", surrogate="arctan")
    assert FSDDIMConfig(**config.to_dict()) == config and config.arch == "fsddim"
    assert config.rule == LIFRule(0.5, 1.0, True, True, False, "arctan")


# ---- training --------------------------------------------------------------------------------------------------------


def trained_step(net: FSDDIM, recompute: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """(gradients, state) after one pass with dropout."""
    net = copy.deepcopy(net).train()
    net.recompute = recompute
    torch.manual_seed(0)
    net(batch(), TIMES).square().sum().backward()
    return [p.grad for p in net.parameters()], net.state_dict()


def test_dropout_acts_in_training_alone():
    net = small(dropout=0.3)
    assert_equal(net(batch(), TIMES), small()(batch(), TIMES))
    net.train()
    torch.manual_seed(0)
    assert not torch.equal(net(batch(), TIMES), net(batch(), TIMES))


def test_recomputing_changes_nothing():
    net = small(dropout=0.3)
    for param in net.parameters():
        param.data += 0.2 * torch.randn(param.shape, generator=torch.Generator().manual_seed(param.numel()))
    (kept, state), (again, state_again) = trained_step(net, False), trained_step(net, True)
    assert all(grad is not None for grad in kept) and sum(bool(grad.any()) for grad in kept) > 0.9 * len(kept)
    for one, other in zip(kept, again, strict=True):
        assert_equal(one, other)
    for name, value in state.items():
        assert_equal(value, state_again[name])
        if name.endswith("num_batches_tracked"):
            assert int(value) == 1


def test_dropout_differs_between_steps_but_not_with_the_split_of_a_batch():
    layer, x = BatchDropout(0.5, 4).train(), torch.ones(4 * 6, 8, 4, 4)

    def dropped(first: int, rows: int) -> torch.Tensor:
        layer.part = (first, 6)
        torch.manual_seed(3)
        return layer(x.view(4, 6, 8, 4, 4)[:, first : first + rows].flatten(0, 1)).view(4, rows, 8, 4, 4)

    whole = dropped(0, 6)
    assert_equal(torch.cat([dropped(0, 2), dropped(2, 4)], dim=1), whole)
    assert set(whole.unique().tolist()) == {0.0, 2.0} and 0.9 < float(whole.mean()) < 1.1
    assert len({tuple(row.flatten().tolist()) for row in whole.flatten(0, 1)}) == 24
    layer.part = None
    assert layer(x).shape == x.shape and 0.9 < float(layer(x).mean()) < 1.1
    assert_equal(layer.eval()(x), x)


def test_fresh_weights_are_the_frameworks():
    torch.manual_seed(0)
    net = FSDDIM(replace(SMALL, ch=32))
    for module in net.modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            limit = module.weight[0].numel() ** -0.5
            assert 0.8 * limit < float(module.weight.detach().abs().max()) <= limit
