"""The neuron that stands in a quantizer's place, and the clock it runs by."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.functional import uniform_levels
from torch import Tensor, nn

from ann2snn.config import SpikingConfig
from ann2snn.convert.quantizers import read_quant_relu
from ann2snn.errors import UserError
from ann2snn.kernels import IFState, Spikes, if_scan
from ann2snn.neurons import Clock, IFNeuron
from quant import QuantReLU
from tests.helpers import assert_close, assert_equal

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)
THETA = 1.75  # a clip is kept in float32
PUBLISHED = {"stream_norm": "per_step", "if_neuron": "reference"}


def layer(schedule: str = "stream", bits: int = 2, alpha: float = THETA, **options) -> IFNeuron:
    """Neurons in place of a QuantReLU of clip `alpha`, in float64, with a clock of their own."""
    clock = Clock(SpikingConfig(schedule, **options), 2**bits - 1)
    return IFNeuron(QuantReLU(bits, alpha_init=alpha), read_quant_relu, clock).double()


def inputs(steps: int, seed: int = 0) -> Tensor:
    """[L, N, C, H, W] = [steps, 2, 4, 3, 3]."""
    return 2 * torch.randn(steps, 2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def run(neuron: IFNeuron, x: Tensor, call=None) -> Tensor:
    """Give x [L, …] as one chunk and let the clock advance → [L, …]."""
    clock = neuron.clock
    clock.begin(len(x))
    out = (call or neuron)(x.flatten(0, 1))
    clock.elapsed += len(x)
    return clock.unfold(out)


class Recorder:
    """Monitor: [L, …] events of every layer, and whether they were counts."""

    def __init__(self) -> None:
        self.events: list[Tensor] = []
        self.counts: set[bool] = set()

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        self.events.append(events.clone())
        self.counts.add(is_count)


# ---- what it answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("keeps", [False, True])
def test_under_layer_sync_it_is_the_quantizer_to_the_last_bit(bits, keeps):
    neuron = layer("layer_sync", bits).float()
    neuron.clock.keeps = keeps
    relu = QuantReLU(bits, alpha_init=THETA)
    for seed in range(2):
        x = inputs(1, seed).float()
        assert_equal(run(neuron, x)[0], relu(x[0]).detach())
    assert sum(state is not None for state in neuron.states) == keeps


@few
@given(bits=st.integers(2, 4), cut=st.integers(1, 3), seed=st.integers(0, 1000))
def test_under_stream_it_answers_with_the_average_of_its_spikes_so_far(bits, cut, seed):
    T = 2**bits - 1
    neuron, monitor, x = layer(bits=bits), Recorder(), inputs(T + 2, seed)
    neuron.clock.monitor = monitor
    answers = torch.cat([run(neuron, x[:cut]), run(neuron, x[cut:])])
    events = torch.cat(monitor.events)
    assert monitor.counts == {False} and set(events.unique().tolist()) <= {-1.0, 0.0, 1.0}
    shares = torch.arange(1, T + 3, dtype=torch.float64).clamp(max=T).view(-1, 1, 1, 1, 1)
    assert_close(answers, events.cumsum(0) * THETA / shares, 1e-12)


@few
@given(bits=st.integers(2, 4), seed=st.integers(0, 1000))
def test_what_is_there_from_the_first_step_on_is_the_quantizers_after_the_last(bits, seed):
    T, x = 2**bits - 1, inputs(1, seed)
    for signed in (True, False):
        neuron = layer(bits=bits, signed=signed)
        assert_equal(
            run(neuron, x.expand(T, -1, -1, -1, -1))[-1], QuantReLU(bits, alpha_init=THETA).double()(x[0]).detach()
        )


def test_levels_that_are_carried_start_where_they_were_and_have_the_whole_input_at_once():
    neuron, x = layer(bits=3), inputs(2)
    alpha = torch.tensor(THETA, dtype=torch.float64)
    run(neuron, x[:1].expand(7, -1, -1, -1, -1))
    before = neuron.states[0].clone()
    assert_equal(before, uniform_levels(x[0], alpha, 3))
    neuron.clock.ramp = False
    wanted = uniform_levels(x[1], alpha, 3)
    for step in range(1, 9):
        answers = run(neuron, x[1:])[0]
        level = before + (wanted - before).clamp(-step, step)
        assert_equal(neuron.states[0], level)
        assert_close(answers, level * THETA / 7, 1e-15)


def test_thresholds_that_are_in_the_next_weights_leave_unit_events():
    x = inputs(5)
    plain, unit = layer(), layer()
    unit.unit_events = True
    assert_close(run(unit, x) * THETA, run(plain, x), 1e-14)
    plain, unit = layer(**PUBLISHED), layer(**PUBLISHED)
    unit.unit_events = True
    events = run(unit, x)
    assert set(events.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert_equal(events * plain.theta.detach(), run(plain, x))


@pytest.mark.parametrize("signed", [True, False])
def test_on_currents_the_published_neuron_reads_and_sends_what_a_step_brings(signed):
    x, theta = inputs(6), torch.tensor(THETA, dtype=torch.float64)
    neuron = layer(signed=signed, **PUBLISHED)
    wanted = if_scan(x, IFState.rest(x[0], theta), theta, signed) * theta
    assert neuron.clock.on_currents
    assert_close(torch.cat([run(neuron, x[:2]), run(neuron, x[2:])]), wanted, 1e-12)
    # On means it finds the currents whose means they are, and answers with the mean of what it sent.
    neuron = layer(signed=signed, bits=3, if_neuron="reference")
    steps = torch.arange(1, 7, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    means = x.cumsum(0) / steps
    answers = torch.cat([run(neuron, means[:4]), run(neuron, means[4:])])
    assert_close(answers, wanted.cumsum(0) / steps, 1e-12)


def test_on_currents_a_level_follows_their_total():
    """Bounded neurons behind a per-step norm: what they send adds up to what they would answer on means."""
    x, currents, means = inputs(7), layer(bits=3, stream_norm="per_step"), layer(bits=3)
    steps = torch.arange(1, 8, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    sent = torch.cat([run(currents, x[:3]), run(currents, x[3:])])
    assert_close(sent.cumsum(0) / steps, run(means, x.cumsum(0) / steps), 1e-12)


@pytest.mark.parametrize(("schedule", "steps"), [("stream", 5), ("layer_sync", 1)])
def test_after_a_norm_it_answers_as_after_the_two_layers(schedule, steps):
    norm, x = nn.GroupNorm(2, 4).double(), inputs(steps)
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(1))
    apart, joined, whole = (layer(schedule) for _ in range(3))
    wanted = run(apart, x, lambda rows: apart(norm(rows)))
    assert_close(run(joined, x, lambda rows: joined.after_norm(norm, rows)), wanted, 1e-14)
    spikes: list[Spikes] = []
    run(whole, x, lambda rows: spikes.append(whole.after_norm(norm, rows, torch.uint8)) or rows)
    assert spikes[0].bytes.dtype == torch.uint8
    assert_close((spikes[0].bytes.double() - spikes[0].zero) * spikes[0].size, wanted.flatten(0, 1), 1e-12)


@pytest.mark.parametrize("options", [{"if_neuron": "reference"}, {"stream_norm": "per_step"}, PUBLISHED], ids=str)
def test_neurons_that_integrate_run_behind_their_norm(options):
    neuron = layer(**options)
    neuron.clock.begin(2)
    with torch.no_grad():
        assert neuron.after_norm(nn.GroupNorm(2, 4).double(), inputs(2).flatten(0, 1)) is None


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"stream_norm": "per_step"}, {"if_neuron": "reference"}, PUBLISHED], ids=str)
def test_another_shape_raises_until_reset(options):
    neuron = layer(**options)
    run(neuron, inputs(2))
    for other in (inputs(2)[:, :1], inputs(1)[..., :2]):
        with pytest.raises(ValueError, match="reset the network"):
            run(neuron, other)
    neuron.reset()
    assert run(neuron, inputs(2)[:, :1]).shape == (2, 1, 4, 3, 3)


def test_every_call_in_a_pass_has_a_state_of_its_own():
    """A module that a network uses twice is two layers of neurons."""
    twice, first, second = layer(bits=3), layer(bits=3), layer(bits=3)
    x, y = inputs(7), inputs(7, seed=1)
    for step in range(7):
        answers = []
        run(twice, x[step : step + 1], lambda rows, y=y[step], to=answers: to.extend((twice(rows), twice(y))) or rows)
        assert_equal(answers[0], run(first, x[step : step + 1])[0])
        assert_equal(answers[1], run(second, y[step : step + 1])[0])
    assert len(twice.states) == 2


def test_state_is_no_part_of_the_state_dict_and_parameters_are_the_quantizers():
    neuron = layer()
    run(neuron, inputs(2))
    assert neuron.states and set(neuron.state_dict()) == {"act_alpha"}
    assert neuron.act_alpha is neuron.quantizer.act_alpha
    with torch.no_grad():
        neuron.act_alpha.fill_(0.9)
    assert neuron.theta.item() == pytest.approx(0.9) and neuron.levels.step.item() == pytest.approx(0.3)


def test_what_a_neuron_answers_is_not_its_state():
    """Whoever writes to the answer leaves the levels as they are."""
    for schedule in ("stream", "layer_sync"):
        neuron, x = layer(schedule), inputs(1)
        neuron.clock.keeps = True
        neuron.unit_events = True
        answers = run(neuron, x)
        kept = neuron.states[0].clone()
        answers.fill_(math.nan)
        assert_equal(neuron.states[0], kept)


def test_charges_and_thresholds_per_channel():
    neuron, x = layer(bits=3), inputs(1)
    neuron.expand((4, 1, 1), thresholds=True, charges=True)
    with torch.no_grad():
        neuron.act_alpha.mul_(torch.linspace(0.6, 1.4, 4).double()[:, None, None])
        neuron.charge.copy_(torch.linspace(0.1, 1.3, 4).double()[:, None, None])
    run(neuron, x.expand(7, -1, -1, -1, -1))
    wanted = torch.floor(x[0] * 7 / neuron.act_alpha + neuron.charge).clamp(0, 7).detach()
    assert_equal(neuron.states[0], wanted)
    assert set(neuron.state_dict()) == {"act_alpha", "charge"}
    with pytest.raises(UserError, match="has thresholds or charges"):
        neuron.reset()
        run(neuron, x[:, :, :3])


# ---- clock -----------------------------------------------------------------------------------------------------------


def test_the_clock_paces_the_window_and_unfolds_without_copying():
    clock = Clock(SpikingConfig("stream", burst=3, settle_steps=2), 15)
    clock.begin(15)
    paces = clock.paces()
    assert [pace.share for pace in paces] == [step / 15 for step in range(1, 16)]
    assert [pace.most for pace in paces] == [1] * 14 + [3]
    clock.elapsed = 15
    clock.begin(3)
    assert {(pace.share, pace.most) for pace in clock.paces()} == {(1.0, 3)}
    clock.elapsed, clock.ramp = 2, False  # levels are carried: all of the input is there
    assert {pace.share for pace in clock.paces()} == {1.0}
    x = torch.arange(12.0).view(6, 2)
    assert clock.unfold(x).shape == (3, 2, 2) and clock.unfold(x).data_ptr() == x.data_ptr()
    assert_equal(clock.unfold(x)[1], x[2:4])  # time is outermost
    with pytest.raises(ValueError, match="do not fold"):
        clock.unfold(x[:5])
    (pace,) = Clock(SpikingConfig(), 15).paces()
    assert pace.share == 1 and pace.most is None


def test_a_chunk_answers_with_its_last_mean_or_with_its_share_of_the_currents():
    x = inputs(5).flatten(0, 1)
    for options, wanted in (({}, lambda rows: rows[-1]), (PUBLISHED, lambda rows: rows.sum(0) / 5)):
        clock = Clock(SpikingConfig("stream", **options), 5)
        clock.begin(2)
        before = clock.average(x[:4])
        clock.begin(3)
        assert_close(clock.average(x[4:], before), wanted(inputs(5)), 1e-14)
