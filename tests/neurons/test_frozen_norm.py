"""The norm with frozen statistics: an affine map of each step's current, which the neuron behind it can take in."""

import copy

import pytest
import torch
from ann2snn.neurons.norm import time_bin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ann2snn.config import SpikingConfig
from ann2snn.errors import UserError
from ann2snn.kernels import IFRule, IFState, if_scan
from ann2snn.neurons import Clock, SpikingGroupNorm
from tests.helpers import assert_close, assert_equal

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)
GROUPS, CHANNELS, BINS, STEPS = 2, 4, 5, 100
TIMES = torch.tensor([3, 61.5, 99], dtype=torch.float64)  # bins 0, 3 and 4


def frozen_layer(seed: int = 0, schedule: str = "stream", **options) -> SpikingGroupNorm:
    """Random affine and statistics, γ of either sign; its clock is at TIMES."""
    tick = Clock(SpikingConfig(schedule, **{"stream_norm": "frozen"} | options), 2, diffusion_steps=STEPS)
    tick.times = TIMES
    layer = SpikingGroupNorm(tick, GROUPS, CHANNELS).double()
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(layer.weight, generator=generator)
    torch.nn.init.normal_(layer.bias, generator=generator)
    mean = torch.randn(BINS, GROUPS, generator=generator, dtype=torch.float64)
    layer.freeze(mean, torch.rand(BINS, GROUPS, generator=generator, dtype=torch.float64) + 0.1)
    return layer


def currents(steps: int, seed: int = 0) -> torch.Tensor:
    """[L, N, C, H, W] = [steps, 3, 4, 3, 3]."""
    generator = torch.Generator().manual_seed(500 + seed)
    return 2 * torch.randn(steps, len(TIMES), CHANNELS, 3, 3, generator=generator, dtype=torch.float64) + 0.5


def run(layer: SpikingGroupNorm, x: torch.Tensor, input_on: bool = True) -> torch.Tensor:
    """x [L, …] as one chunk → [L, …]."""
    layer.clock.chunk_steps, layer.clock.input_on = len(x), input_on
    with torch.no_grad():
        return layer.clock.unfold(layer(x.flatten(0, 1)))


def normalized(layer: SpikingGroupNorm, x: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] at TIMES, by torch's batch norm with each image's statistics spelled out."""
    images = []
    for image, index in zip(x, [0, 3, 4], strict=True):
        mean = layer.frozen_mean[index, [0, 0, 1, 1]]
        var = layer.frozen_var[index, [0, 0, 1, 1]]
        images.append(F.batch_norm(image[None], mean, var, layer.weight.detach(), layer.bias.detach(), eps=layer.eps))
    return torch.cat(images)


def test_scale_and_shift_by_hand():
    layer = SpikingGroupNorm(Clock(SpikingConfig("stream", stream_norm="frozen"), 2, diffusion_steps=10), 2, 2)
    layer.eps = 0.0
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, -1.0]))
        layer.bias.copy_(torch.tensor([0.5, 2.0]))
    layer.freeze(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[4.0, 0.25], [1.0, 16.0]]))
    scale, shift = layer.affine_map(torch.tensor([4, 5]))
    assert_equal(scale.detach(), torch.tensor([[1.5, -2.0], [3.0, -0.25]]))
    assert_equal(shift.detach(), torch.tensor([[-1.0, 6.0], [-11.5, 4.0]]))


@few
@given(steps=st.integers(1, 7), seed=st.integers(0, 1000))
def test_the_total_current_is_that_of_the_mean(steps, seed):
    layer, x = frozen_layer(seed), currents(steps, seed)
    assert_close(run(layer, x).sum(0), steps * normalized(layer, x.mean(0)), 1e-12)


def test_every_step_stands_alone_and_nothing_is_remembered():
    layer, x = frozen_layer(), currents(3)
    out = run(layer, x)
    for step in range(3):
        assert_close(out[step], normalized(layer, x[step]), 1e-12)
    order = torch.tensor([2, 0, 1])
    assert_equal(run(layer, x[order]), out[order])
    assert_equal(torch.cat([run(layer, x[:1]), run(layer, x[1:])]), out)
    assert layer.state is None


def test_the_shift_is_a_current_that_stops_with_the_input():
    layer, x, y = frozen_layer(), currents(2), currents(2, seed=1)
    assert_equal(run(layer, torch.zeros_like(x), input_on=False), torch.zeros_like(x))
    settling = run(layer, x, input_on=False)
    assert_close(run(layer, x) - settling, normalized(layer, torch.zeros_like(x[0])).expand_as(x), 1e-12)
    assert_close(run(layer, 2 * x - y, input_on=False), 2 * settling - run(layer, y, input_on=False), 1e-12)


def test_frozen_at_an_images_own_statistics_it_is_group_norm():
    layer, x = frozen_layer(), currents(1)[0]
    values = x.view(len(x), GROUPS, -1)
    layer.freeze(values.mean(2), values.var(2, unbiased=False))
    layer.clock.times = torch.tensor([0, 40, 99])  # one bin an image
    expected = F.group_norm(x, GROUPS, layer.weight.detach(), layer.bias.detach(), layer.eps)
    assert_close(run(layer, x[None])[0], expected, 1e-12)


@pytest.mark.parametrize("other", [{"schedule": "layer_sync"}, {"stream_norm": "cumulative"}])
def test_other_schedules_and_norms_ignore_the_statistics(other):
    layer, x = frozen_layer(**other), currents(1)
    expected = F.group_norm(x[0], GROUPS, layer.weight.detach(), layer.bias.detach(), layer.eps)
    assert_close(run(layer, x)[0], expected, 1e-12)


@pytest.mark.parametrize(("bins", "steps"), [(1, 1000), (7, 20), (10, 1000), (49, 50), (333, 1000), (1000, 1000)])
def test_bins_have_equal_width_and_exact_edges(bins, steps):
    t = torch.arange(steps)
    assert_equal(time_bin(t, bins, steps), t * bins // steps)
    assert (
        time_bin(torch.tensor([-0.5, 0.0, steps - 1e-6, steps, 2.0 * steps]), bins, steps).tolist()[-2:]
        == [bins - 1] * 2
    )
    assert_equal(time_bin(t.float() + 0.75, bins, steps), (4 * t + 3) * bins // (4 * steps))


@few
@given(signed=st.booleans(), bits=st.integers(2, 4), seed=st.integers(0, 1000))
def test_the_norm_folds_into_the_neuron_behind_it(signed, bits, seed):
    """θ, charge θ/2, current a·x + b fires as θ/|a|, charge θ/(2|a|), current sign(a)·x + b/|a|, event by event."""
    layer, x = frozen_layer(seed), currents(2**bits - 1 + 4, seed)
    window, theta = 2**bits - 1, torch.tensor(1.3, dtype=torch.float64)
    with torch.no_grad():
        scale, shift = (value[..., None, None] for value in layer.affine_map(TIMES))
    on = torch.arange(len(x)).view(-1, 1, 1, 1, 1) < window  # four settling steps
    rule = IFRule("bounded", signed)
    behind = if_scan(x * scale + shift * on, IFState.rest(x[0], theta), theta, rule, window)
    folded_theta = (theta / scale.abs()).expand_as(x[0])
    current = x * scale.sign() + shift / scale.abs() * on
    folded = if_scan(current, IFState.rest(x[0], folded_theta), folded_theta, rule, window)
    assert bool((scale < 0).any()) or seed  # either sign is met
    assert behind.abs().sum() > 0
    assert_equal(folded, behind)


def test_statistics_are_saved_move_and_copy_with_the_layer_but_only_once_there():
    layer = SpikingGroupNorm(Clock(SpikingConfig("stream"), 2), GROUPS, CHANNELS)
    assert set(layer.state_dict()) == {"weight", "bias"}
    mean = torch.randn(BINS, GROUPS, dtype=torch.float64)
    layer.freeze(mean, mean.square())
    assert set(layer.state_dict()) == {"weight", "bias", "frozen_mean", "frozen_var"}
    assert layer.frozen_mean.dtype == torch.float32 and layer.double().frozen_mean.dtype == torch.float64
    twin = copy.deepcopy(layer)
    twin.frozen_mean.zero_()
    assert_equal(layer.frozen_mean, mean.float().double())
    assert_equal(layer.frozen_var, mean.square().float().double())
    layer.freeze(mean, mean.square())
    expected = mean.clone()
    mean.zero_()  # the layer keeps a copy
    assert_equal(layer.frozen_mean, expected)


@pytest.mark.parametrize(
    ("mean", "var", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "frozen_mean is [3], expected [bins, 2]"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "frozen_mean is [0, 2]"),
        (torch.zeros(5, 3), torch.zeros(5, 3), "frozen_mean is [5, 3]"),
        (torch.zeros(5, 2), torch.zeros(4, 2), "frozen_mean has 5 bins and frozen_var 4"),
        (torch.zeros(5, 2), -torch.ones(5, 2), "negative variances"),
        (torch.full((5, 2), torch.nan), torch.zeros(5, 2), "frozen_mean holds values that are not finite"),
        (torch.zeros(5, 2), torch.full((5, 2), torch.inf), "frozen_var holds values that are not finite"),
        (torch.full((5, 2), 1e300, dtype=torch.float64), torch.zeros(5, 2), "not finite"),  # in the layer's float32
    ],
)
def test_impossible_statistics_are_refused_and_change_nothing(mean, var, message):
    layer = frozen_layer().float()
    before = layer.frozen_mean.clone(), layer.frozen_var.clone()
    for attempt in (layer.freeze, lambda m, v: layer.adopt({"frozen_mean": m, "frozen_var": v})):
        with pytest.raises(UserError) as refusal:
            attempt(mean, var)
        assert message in str(refusal.value)
    assert_equal(layer.frozen_mean, before[0])
    assert_equal(layer.frozen_var, before[1])


def test_adopting_takes_both_statistics_or_none():
    layer = SpikingGroupNorm(Clock(SpikingConfig("stream"), 2), GROUPS, CHANNELS)
    layer.adopt({"weight": torch.zeros(4)})
    assert layer.frozen_mean is None
    with pytest.raises(UserError, match="frozen_var stands alone"):
        layer.adopt({"frozen_var": torch.ones(1, GROUPS)})
    layer.adopt({"frozen_mean": torch.zeros(7, GROUPS), "frozen_var": torch.ones(7, GROUPS)})
    assert layer.frozen_var.shape == (7, GROUPS)


def test_running_without_statistics_or_times_says_what_is_missing():
    layer = frozen_layer()
    layer.clock.times = None
    with pytest.raises(ValueError, match="no diffusion times"):
        run(layer, currents(1))
    layer.clock.times, layer.frozen_mean = TIMES, None
    with pytest.raises(UserError, match="freeze_norms"):
        run(layer, currents(1))
