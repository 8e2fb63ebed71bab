"""Clips set from data: optimal, in order, and without side effects."""

import pytest
import torch
from torch import nn

import quant
from quant import calibrate_activations


def gaussian(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("power", [False, True])
def test_mse_clip_is_the_brute_force_optimum(bits, power):
    layer = quant.QuantReLU(bits, power=power)
    x = gaussian(2000)
    clips = calibrate_activations(layer, [(x,)])

    def error(clip):
        grid = quant.power_levels(bits) if power else [k / (2**bits - 1) for k in range(2**bits)]
        return (x.relu().unsqueeze(1) - torch.tensor(grid) * clip).abs().min(1).values.square().mean().item()

    best = min(error(c / 100) for c in range(50, 500, 2))
    assert clips == {"": pytest.approx(layer.act_alpha.item())}
    assert error(clips[""]) <= 1.02 * best


def test_percentile_is_taken_over_positive_values():
    layer = quant.QuantReLU(2)
    x = torch.cat([-torch.rand(900), torch.arange(1, 102).float()])
    calibrate_activations(layer, [(x,)], method="percentile", percentile=90)
    assert layer.act_alpha.item() == pytest.approx(91)


def test_later_layers_see_the_new_clips_of_earlier_ones():
    net = nn.Sequential(quant.QuantReLU(2), quant.QuantReLU(2))
    clips = calibrate_activations(net, [(gaussian(4000),)])
    # The first layer's output has the levels of its new clip, which the second can hit exactly.
    assert 1 < clips["0"] < 3 and clips["1"] == pytest.approx(clips["0"])


def test_batches_add_up_and_positional_arguments_are_passed_on():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = quant.QuantReLU(2)

        def forward(self, x, t):
            return self.act(x * t)

    net = Net()
    batches = ((torch.full((10,), v), torch.tensor(2.0)) for v in (1.0, 4.0))
    calibrate_activations(net, batches, method="percentile", percentile=50)
    assert net.act.act_alpha.item() == pytest.approx(5)  # the middle of ten values 2 and ten values 8


def test_large_inputs_are_sampled():
    layer = quant.QuantReLU(3)
    x = gaussian(200_000).view(2, 100, 1000)
    rng = torch.get_rng_state()
    sampled = calibrate_activations(layer, [(x,)])[""]
    assert torch.equal(rng, torch.get_rng_state())
    assert calibrate_activations(quant.QuantReLU(3), [(x,)])[""] == sampled
    error = (layer(x) - x.relu()).square().mean()
    full = min((quant.uniform_quantize(x, c / 50, 3) - x.relu()).square().mean() for c in range(50, 200))
    assert error <= 1.02 * full and sampled > 1


def test_the_subclasses_are_calibrated_on_what_they_quantize():
    swish, pool = quant.QuantSwish(2), quant.QuantAvgPool2d(2, bits=2)
    x = torch.full((1, 1, 4, 4), 3.0)
    x[..., ::2] = 1.0
    assert calibrate_activations(pool, [(x,)])[""] == pytest.approx(2.0)
    values = torch.nn.functional.silu(torch.full((5,), 3.0))
    assert calibrate_activations(swish, [(torch.full((5,), 3.0),)])[""] == pytest.approx(values[0].item())


def test_what_it_must_not_touch():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), quant.QuantReLU(2), quant.QuantReLU(32), quant.QuantReLU(2))
    net[1].eval()
    net[2].act_alpha.data.fill_(9.0)
    rng, statistics = torch.get_rng_state(), net[1].running_mean.clone()
    clips = calibrate_activations(net[:4], [(gaussian(80).view(20, 4),)])
    assert list(clips) == ["2"] and net[2].act_alpha.item() == pytest.approx(clips["2"]) and clips["2"] < 9
    assert net[4].act_alpha.item() == 6.0
    assert torch.equal(rng, torch.get_rng_state()) and torch.equal(statistics, net[1].running_mean)
    assert [m.training for m in net] == [True, False, True, True, True]
    assert not any(m._forward_pre_hooks for m in net) and net[2].act_alpha.grad is None


def test_a_layer_that_sees_nothing_positive_keeps_its_clip():
    layer = quant.QuantReLU(2)
    assert calibrate_activations(layer, [(-torch.rand(10),)]) == {} and layer.act_alpha.item() == 6.0


def test_errors():
    layer, batch = quant.QuantReLU(2), [(torch.rand(3),)]
    with pytest.raises(ValueError, match="got 'max'"):
        calibrate_activations(layer, batch, method="max")
    with pytest.raises(ValueError, match="got 0"):
        calibrate_activations(layer, batch, method="percentile", percentile=0)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_activations(layer, [])
    net = nn.Sequential(nn.Identity(), layer)
    with pytest.raises(ValueError, match="input of 1 has values that are not finite"):
        calibrate_activations(net, [(torch.tensor([1.0, float("nan")]),)])
    assert not layer._forward_pre_hooks
