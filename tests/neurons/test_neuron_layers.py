"""Layers with spike-time memory: what they do under the clock."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ann2snn.config import SpikingConfig
from ann2snn.neurons import Clock, IFNeuron, SpikingGroupNorm
from quant import QuantReLU
from tests.helpers import assert_close, assert_equal

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def clock(schedule: str = "stream", bits: int = 2, **options) -> Clock:
    return Clock(SpikingConfig(schedule, **options), bits)


def norm_layer(tick: Clock, seed: int = 0) -> SpikingGroupNorm:
    layer = SpikingGroupNorm(tick, 2, 4).double()
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
    torch.nn.init.normal_(layer.bias, generator=generator)
    return layer


def currents(steps: int, seed: int = 0) -> torch.Tensor:
    """[L, N, C, H, W] = [steps, 2, 4, 3, 3], each step with a mean and a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(steps, 2, 4, 1, 1, generator=generator, dtype=torch.float64) * 3
    return torch.randn(steps, 2, 4, 3, 3, generator=generator, dtype=torch.float64) * scale + scale


def group_norm(layer: SpikingGroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 2, layer.weight.detach(), layer.bias.detach(), layer.eps)


def run(layer, x: torch.Tensor) -> torch.Tensor:
    """Give x [L, …] as one chunk and let the clock advance → [L, …]."""
    tick = layer.clock
    tick.chunk_steps = len(x)
    with torch.no_grad():
        out = layer(x.flatten(0, 1))
    tick.elapsed += len(x)
    return tick.unfold(out)


@few
@given(bits=st.integers(2, 4), seed=st.integers(0, 1000))
def test_cumulative_currents_telescope_to_the_norm_of_the_mean(bits, seed):
    layer = norm_layer(clock(bits=bits), seed)
    T = 2**bits - 1
    x = currents(T, seed)
    out = run(layer, x)
    assert_close(out.sum(0), T * group_norm(layer, x.mean(0)), 1e-12)
    for t in range(1, T + 1):  # causal, and right at every step on the way
        assert_close(out[:t].sum(0), t * group_norm(layer, x[:t].mean(0)), 1e-12)


@few
@given(late=st.integers(1, 6), seed=st.integers(0, 1000))
def test_while_settling_means_keep_dividing_by_the_window(late, seed):
    layer = norm_layer(clock())
    x = currents(3 + late, seed)
    total = run(layer, x[:3]).sum(0) + run(layer, x[3:]).sum(0)
    assert_close(total, 3 * group_norm(layer, x.sum(0) / 3), 1e-12)
    silent = run(layer, torch.zeros_like(x))
    assert silent.abs().max() < 1e-12  # nothing arrives, so no current leaves: corrections die out


@few
@given(cut=st.integers(1, 6), seed=st.integers(0, 1000))
def test_cumulative_chunks_join_up(cut, seed):
    x = currents(7, seed)
    whole = run(norm_layer(clock(bits=3)), x)
    layer = norm_layer(clock(bits=3))
    assert_close(torch.cat([run(layer, x[:cut]), run(layer, x[cut:])]), whole, 1e-12)


def test_per_step_norm_sees_each_step_alone_and_its_mean_is_another():
    layer = norm_layer(clock(stream_norm="per_step"))
    x = currents(3)
    out = run(layer, x)
    for t in range(3):
        assert_close(out[t], group_norm(layer, x[t]), 1e-12)
    assert (out.mean(0) - group_norm(layer, x.mean(0))).norm() > 0.1
    assert layer.state is None


def test_layer_sync_norms_the_window_mean():
    tick = clock("layer_sync")
    layer = norm_layer(tick)
    x = currents(3)
    assert_equal(layer(x[0]).detach(), group_norm(layer, x[0]))  # on counts a row is the mean already
    tick.materialise = True
    out = run(layer, x)
    for t in range(3):
        assert_close(out[t], group_norm(layer, x.mean(0)), 1e-12)


@pytest.mark.parametrize("layer", [norm_layer(clock()), IFNeuron(clock()).double()])
def test_another_shape_raises_until_reset(layer):
    run(layer, currents(2))
    with pytest.raises(ValueError, match="reset the network"):
        run(layer, currents(2)[:, :1])
    layer.reset()
    assert run(layer, currents(2)[:, :1]).shape == (2, 1, 4, 3, 3)


def test_state_is_no_part_of_the_state_dict():
    for layer, names in ((norm_layer(clock()), {"weight", "bias"}), (IFNeuron(clock()).double(), {"act_alpha"})):
        run(layer, currents(2))
        assert layer.state is not None
        assert set(layer.state_dict()) == names


def test_spikes_leave_scaled_by_the_threshold_and_counts_by_its_share():
    x = currents(3)
    tick = clock()
    neuron = IFNeuron(tick, alpha_init=1.7).double()
    theta = neuron.theta.item()
    assert set((run(neuron, x) / theta).round(decimals=9).unique().tolist()) <= {-1.0, 0.0, 1.0}
    neuron.clock = clock("layer_sync")
    levels = neuron(x[0]).detach() * 3 / theta
    assert_close(levels, levels.round(), 1e-12)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_on_counts_a_neuron_is_the_quantized_relu_to_the_last_bit(bits):
    x = torch.randn(1000) * 2
    neuron, relu = IFNeuron(clock("layer_sync", bits), alpha_init=1.7), QuantReLU(bits, alpha_init=1.7)
    assert_equal(neuron(x).detach(), relu(x).detach())


def test_the_clock_counts_levels_and_unfolds_without_copying():
    tick = clock(bits=4)
    assert tick.spike_steps == tick.window == 15 and tick.is_stream and not tick.on_counts
    assert clock("layer_sync", 4).window == 1 and clock("layer_sync", 4).on_counts
    tick.chunk_steps = 3
    x = torch.arange(12.0).view(6, 2)
    assert tick.unfold(x).shape == (3, 2, 2) and tick.unfold(x).data_ptr() == x.data_ptr()
    assert_equal(tick.unfold(x)[1], x[2:4])  # time is outermost
    with pytest.raises(ValueError, match="do not fold"):
        tick.unfold(x[:5])
