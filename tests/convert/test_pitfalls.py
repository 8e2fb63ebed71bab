"""What networks do that a conversion must survive, each once."""

import collections
import copy
import dataclasses
import io
import pickle
import threading
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from ann2snn.config import SpikingConfig
from ann2snn.convert import Levels, convert, measure_gap, register_quantizer
from ann2snn.convert.quantizers import _READERS
from ann2snn.errors import UserError
from quant import QuantReLU, UniformQuantizer
from tests.helpers import assert_equal

SETTLED = {"schedule": "stream", "settle_steps": "auto"}
WAYS = pytest.mark.parametrize("how", [{}, SETTLED], ids=["layer_sync", "settled"])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantizer(bits=3, signed=True, step=0.3, **options):
    made = UniformQuantizer(bits, signed, **options)
    nn.init.constant_(made.scale, step)
    return made


class Made(nn.Module):
    """A network of named parts and a function of them and the call, in float64."""

    def __init__(self, run, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part() if callable(part) and not isinstance(part, nn.Module) else part)
        self.double().eval()

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def linear(n=4, m=4):
    return lambda: nn.Linear(n, m)


def chain(*middle, out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, out)).double().eval()


def plain():
    return chain(quantizer(), nn.Linear(4, 4), nn.SiLU(), quantizer(2))


def assert_same(net, *args, how=None, **kwargs):
    """convert(net) answers what net answers, to the last bit; the spiking network."""
    snn = convert(net, **(how or {}))
    with torch.no_grad():
        assert_equal(snn(*args, **kwargs), net(*args, **kwargs))
    return snn


def names(snn):
    return {name for name, _ in snn.neurons()}


class Totals:
    """Monitor that adds up events."""

    def __init__(self):
        self.events, self.records = 0.0, 0

    def record(self, neuron, events, is_count):
        self.records += 1
        self.events += float(events.abs().sum())


# ---- quantizers of weights -------------------------------------------------------------------------------------------


@WAYS
def test_a_quantizer_of_weights_stays_one_and_does_not_widen_the_window(how):
    def run(net, x):
        return F.linear(net.q(net.a(x)), net.weight_quant(net.b.weight), net.b.bias)

    net = Made(run, a=linear(), b=linear(), q=quantizer(3), weight_quant=quantizer(8, step=0.01))
    snn = assert_same(net, normal(2, 4), how=how)
    assert names(snn) == {"q"} and snn.clock.spike_steps == 7
    assert snn.describe().reads_spikes == ("",) and snn.describe().reads_real == ("a",)


@WAYS
def test_a_parametrization_of_weights_stays_a_quantizer(how):
    net = plain()
    parametrize.register_parametrization(net[2], "weight", quantizer(8, step=0.01).double())
    snn = assert_same(net, normal(2, 4), how=how)
    assert names(snn) == {"1", "4"} and snn.clock.spike_steps == 7


@WAYS
def test_one_quantizer_for_weights_and_for_activations_is_a_neuron(how):
    net = Made(lambda net, x: F.linear(net.q(net.a(x)), net.q(net.b.weight)), a=linear(), b=linear(), q=quantizer())
    assert names(assert_same(net, normal(2, 4), how=how)) == {"q"}


class Rounded(torch.autograd.Function):
    """A function that torch's own do not know of."""

    @staticmethod
    def forward(ctx, x):
        return x.round()


@pytest.mark.parametrize(
    "feed",
    [
        lambda x: Rounded.apply(x),
        lambda x: torch.zeros(2, 4).double().copy_(x),
        lambda x: torch.zeros(2, 4).double().index_copy(0, torch.arange(2), x),
        lambda x: _written(lambda buffer: buffer.__setitem__((slice(None), slice(0, 2)), x[:, :2])),
        lambda x: _written(lambda buffer: buffer[:, 2:].copy_(x[:, 2:])),
        lambda x: _written(lambda buffer: torch.add(x, 1, out=buffer)),
        lambda x: torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=False),
    ],
)
def test_what_a_neuron_reads_is_seen_however_it_came_there(feed):
    def run(net, x):
        return net.b(net.q(feed(net.a(x))))

    snn = assert_same(Made(run, a=linear(), b=linear(), q=quantizer()), normal(2, 4))
    assert names(snn) == {"q"} and snn.describe().reads_spikes == ("b",)


def _written(write):
    buffer = torch.zeros(2, 4, dtype=torch.float64)
    write(buffer)
    return buffer


def test_levels_written_into_zeros_are_levels_and_no_longer_when_something_is_added():
    def run(net, x, shift):
        buffer = torch.zeros(2, 4, dtype=x.dtype)
        buffer[:, :4] = net.q(net.a(x))
        buffer[:, 1:2] += shift
        return net.b(buffer)

    net = Made(run, a=linear(), b=linear(), q=quantizer())
    assert assert_same(net, normal(2, 4), normal(2, 1)).describe().reads_real == ("a", "b")
    net.run = lambda net, x: net.b(_written(lambda buffer: buffer.copy_(net.q(net.a(x)))))
    assert assert_same(net, normal(2, 4)).describe().reads_spikes == ("b",)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b, x: torch.matmul(a, other=b.T) @ x,
        lambda a, b, x: torch.bmm(input=a[None], mat2=b.T[None])[0] @ x,
        lambda a, b, x: torch.baddbmm(x[None, :, :3], batch1=a[None], batch2=b.T[None], beta=0)[0] @ x,
        lambda a, b, x: torch.addmm(x[:, :3], mat1=a, mat2=b.T) @ x,
    ],
)
def test_products_called_by_keyword_are_followed(multiply):
    net = Made(lambda net, x: net.b(multiply(net.q(net.a(x)), net.p(net.a(x)), x)), **_parts())
    product = assert_same(net, normal(3, 4)).describe().synapses[2]
    assert product.reads == ({"q"}, {"p"}) and product.macs == 3 * 3 * 4 and product.spikes


@pytest.mark.parametrize(
    ("part", "macs"), [(nn.LSTM(4, 4), 3 * 128), (nn.GRUCell(4, 4), 3 * 96), (nn.Bilinear(4, 4, 4), 3 * 64)]
)
def test_what_multiplies_inside_one_function_is_described_as_real(part, macs):
    def run(net, x):
        h = net.q(net.a(x))
        answer = net.part(h, h) if isinstance(net.part, nn.Bilinear) else net.part(h)
        return net.b(answer[0] if isinstance(answer, tuple) else answer)

    described = assert_same(Made(run, part=copy.deepcopy(part), **_parts()), normal(3, 4)).describe()
    found = {synapses.name: synapses for synapses in described.synapses}["part"]
    assert found.macs == macs and not found.spikes


@WAYS
def test_what_a_first_call_leaves_out_is_a_neuron_once_it_is_given(how):
    def run(net, x, y=None):
        return net.b(net.q(net.a(x) + net.a(net.p(net.null.weight if y is None else y))))

    net, x, y = Made(run, null=nn.Linear(4, 1), **_parts()), normal(2, 4), normal(2, 4, seed=1)
    snn, whole, counts = convert(net, **how), convert(net, **how), []
    with torch.no_grad(), snn.carrying():
        for call in ((x,), (x, y), (x,), (x, y)):
            assert_equal(snn(*call), net(*call))
    whole(x, y)
    assert names(snn) == names(whole) == {"q", "p"}
    for network in (snn, whole):
        with network.monitored(totals := Totals()), torch.no_grad():
            network(x, y)
        counts.append(totals.events)
    assert counts[0] == counts[1] > 0


def test_describing_forgets_carried_levels_and_the_next_call_counts_as_a_restart():
    snn = convert(plain())
    with snn.carrying(), torch.no_grad():
        snn(normal(2, 4))
        snn.describe(normal(2, 4))
        snn(normal(2, 4))
        assert snn.restarts == 2


def test_a_time_given_as_a_number_is_part_of_the_call():
    def run(net, x, time):
        return net.b(net.q(net.a(x))) + net.b(net.later(torch.tensor([time] * 4, dtype=x.dtype)))

    net = Made(run, a=linear(), b=linear(), q=quantizer(), later=quantizer(step=100.0))
    assert names(assert_same(net, normal(2, 4), 500)) == {"q", "later"}


# ---- calls -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Conditions:
    image: torch.Tensor
    extra: list


@WAYS
def test_a_forward_pass_may_change_its_arguments_and_the_callers_stay(how):
    def run(net, x, parts, *, named, conditions):
        x.mul_(2)
        h = net.q(net.a(F.relu(x, inplace=True)))
        h.add_(parts.pop()).add_(named.pop("shift")).add_(conditions.extra.pop())
        conditions.image.zero_()
        return net.b(F.relu_(net.p(h)))

    net = Made(run, a=linear(), b=linear(), q=quantizer(), p=quantizer(2))
    x, shift = normal(2, 4), normal(2, 4, seed=1)
    call = ((x, [shift]), {"named": {"shift": shift}, "conditions": Conditions(x + 1, [shift])})
    before, again = copy.deepcopy(call), copy.deepcopy(call)
    with torch.no_grad():
        expected = net(*again[0], **again[1])
        assert_equal(convert(net, **how)(*call[0], **call[1]), expected)
    assert_equal(call[0][0], before[0][0])
    assert len(call[0][1]) == 1 and set(call[1]["named"]) == {"shift"}
    assert_equal(call[1]["conditions"].image, before[1]["conditions"].image)
    assert len(call[1]["conditions"].extra) == 1


@WAYS
def test_a_tensor_that_is_given_twice_stays_one_tensor(how):
    net = Made(lambda net, x, *, again: net.b(net.q(net.a(x.mul_(2)))) + net.b(net.p(again)), **_parts())
    x = normal(2, 4)
    with torch.no_grad():
        expected = net(twice := x.clone(), again=twice)
        assert_equal(convert(net, **how)(x, again=x), expected)


@pytest.mark.parametrize("kind", [types.SimpleNamespace, collections.UserDict])
def test_tensors_in_namespaces_and_user_dicts_are_part_of_the_call(kind):
    net = Made(
        lambda net, given: net.b(net.q(net.a(dict(vars(given), **vars(given).get("data", {}))["x"]))), **_parts()
    )
    x = normal(2, 4)
    assert names(assert_same(net, kind(x=x))) == {"q", "p"}
    with convert(net).carrying() as snn, torch.no_grad():
        for rows in (2, 2, 1):
            snn(kind(x=x[:rows]))
        assert snn.restarts == 2


@WAYS
def test_an_answer_that_is_written_to_changes_no_state(how):
    net = Made(lambda net, x: net.b(net.q(net.a(x)).mul_(3).add_(x)) + net.p(x).zero_(), **_parts())
    snn = convert(net, **how)
    with torch.no_grad(), snn.carrying():
        for seed in range(3):
            assert_equal(snn(normal(2, 4, seed=seed)), net(normal(2, 4, seed=seed)))


def _parts():
    return {"a": linear(), "b": linear(), "q": quantizer(), "p": quantizer(2)}


@WAYS
def test_a_module_called_twice_has_a_state_per_call_and_one_registered_twice_is_one(how):
    def run(net, x):
        h = net.q(net.a(x))
        for layer in net.layers:
            h = net.q(layer(h))
        return net.b(net.again(h))

    shared = quantizer()
    layer = nn.Sequential(nn.Linear(4, 4), shared)
    net = Made(run, a=linear(), b=linear(), q=quantizer(2), again=shared, layers=nn.ModuleList([layer, layer]))
    snn = assert_same(net, normal(2, 4), how=how)
    assert snn.net.again is snn.net.layers[0][1] is snn.net.layers[1][1]
    assert sum(1 for _ in snn.neurons()) == 2
    assert len(list(snn.parameters())) == len(list(net.parameters()))
    with torch.no_grad(), snn.carrying():
        for seed in range(3):
            assert_equal(snn(normal(2, 4, seed=seed)), net(normal(2, 4, seed=seed)))
            assert [len(neuron.states) for _, neuron in snn.neurons()] == [3, 3]


@WAYS
def test_an_empty_batch_is_answered_with_one_and_the_next_call_looks_again(how):
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), quantizer(), nn.GroupNorm(1, 2), quantizer(), nn.Conv2d(2, 2, 3))
    snn = convert(conv.double(), **how)
    assert snn(normal(0, 1, 8, 8)).shape == (0, 2, 4, 4)
    assert_same(conv, normal(2, 1, 8, 8), how=how)
    snn(normal(2, 1, 8, 8))
    assert snn.describe().share > 0


@WAYS
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4), (2, 1, 2, 3, 2)])
def test_inputs_of_any_number_of_dimensions(how, shape):
    net = Made(lambda net, x: net.p(net.q(x).sin()), q=quantizer(), p=quantizer(2))
    assert_same(net, normal(*shape), how=how)


@WAYS
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 5), 1), ((2, 3, 5), 2), ((2, 5, 4), 1), ((2, 5, 4, 4), 1), ((3, 5), -1)]
)
def test_a_step_per_channel_on_any_axis(how, shape, axis):
    def made():
        part = quantizer(channels=5, axis=axis)
        nn.init.uniform_(part.scale, 0.1, 0.5)
        return part

    assert_same(Made(lambda net, x: net.p(net.q(x).sin() + x), q=made, p=made), normal(*shape), how=how)


def test_two_threads_wait_for_each_other_and_both_answer_right():
    net = plain()
    snn, inputs = convert(net, **SETTLED), [normal(3, 4, seed=seed) for seed in range(8)]
    answers: list = [None] * 8

    def work(index):
        with torch.no_grad():
            for _ in range(3):
                answers[index] = snn(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for x, answer in zip(inputs, answers, strict=True):
            assert_equal(answer, net(x))


def test_the_pass_that_looks_is_not_counted():
    counts = []
    snn = convert(plain())
    for _ in range(2):
        with snn.monitored(totals := Totals()):
            snn(normal(2, 4))
        counts.append((totals.records, totals.events))
    assert counts[0] == counts[1] and counts[0][0] == 2


def test_a_failed_first_call_does_not_hide_which_quantizers_are_of_weights():
    def run(net, x):
        return F.linear(net.q(net.a(x)), net.of_weights(net.b.weight))

    snn = convert(Made(run, a=linear(), b=linear(), q=quantizer(), of_weights=quantizer(8)))
    with pytest.raises(RuntimeError):
        snn(normal(2, 5))
    snn(normal(2, 4))
    assert names(snn) == {"q"} and snn.clock.spike_steps == 7


# ---- modes and precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [lambda: nn.BatchNorm1d(4), lambda: nn.Dropout(0.1), lambda: nn.RReLU()])
@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_answers_differently_in_every_pass_is_refused_in_training_mode(part, all_of_it):
    net = chain(part(), quantizer())
    snn = convert(net.train())
    assert_equal(snn(normal(3, 4)), net.eval()(normal(3, 4)))
    (snn if all_of_it else snn.net[1]).train()
    with pytest.raises(UserError, match=r"1 is in training mode: .* call \.eval\(\)"):
        snn(normal(3, 4))


class Learning(nn.Module):
    """A quantizer that moves its step in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.tensor(0.2))

    def levels(self, x):
        return (x / self.step).round().clamp(-4, 3)

    def forward(self, x):
        if self.training:
            self.step = x.abs().mean()
        return self.levels(x) * self.step


@pytest.fixture
def registered():
    """`register_quantizer`, undone afterwards."""
    before = dict(_READERS)
    yield register_quantizer
    _READERS.clear()
    _READERS.update(before)


def test_a_quantizer_is_in_the_mode_of_its_neuron(registered):
    registered(Learning, lambda m: Levels(m.step, -4, 3, level=lambda x: m(x) / m.step))
    net = chain(Learning()).train()
    snn = convert(net)
    assert_equal(snn(normal(5, 4)), net.eval()(normal(5, 4)))
    assert snn.train().net[1].quantizer.training and not snn.eval().net[1].quantizer.training


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(how, dtype):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), quantizer(4, step=0.13, channels=6), nn.Conv2d(6, 6, 3), QuantReLU(3, 1.7)]
    net = nn.Sequential(*parts, nn.Conv2d(6, 6, 3), quantizer(8, step=0.013), nn.Conv2d(6, 2, 3)).to(dtype).eval()
    assert_same(net, normal(2, 3, 12, 12).to(dtype), how=how)
    if dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(net, normal(2, 3, 12, 12).to(dtype), how=how)


@pytest.mark.parametrize("how", [{}, {"schedule": "stream"}], ids=["layer_sync", "stream"])
def test_carrying_with_gradients_and_across_inference_mode(how):
    net = plain()
    snn = convert(net, **how)
    modes = [torch.enable_grad, torch.enable_grad, torch.inference_mode, torch.no_grad, torch.inference_mode]
    with snn.carrying():
        for seed, mode in enumerate([*modes, torch.enable_grad]):
            with mode():
                answer = snn(normal(2, 4, seed=seed))
                assert_equal(answer.detach(), net(normal(2, 4, seed=seed)).detach())
            if answer.requires_grad:
                answer.sum().backward()
            assert not any(state.requires_grad for _, neuron in snn.neurons() for state in neuron.states)
    assert snn.restarts == 1


# ---- NaN -------------------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_nan_is_answered_with_nan_and_nothing_else_happens(how, carry, mode):
    net = plain()
    snn = convert(net, **how)
    clean, other = normal(3, 4), normal(3, 4, seed=1)
    spoilt = other.clone()
    spoilt[1, 2] = torch.nan
    with mode(), snn.carrying() if carry else torch.no_grad() if mode is torch.no_grad else torch.enable_grad():
        assert_equal(snn(clean), net(clean))
        if carry:
            states = [neuron.states[0].clone() for _, neuron in snn.neurons()]
        with snn.monitored(spoilt_totals := Totals()):
            answer = snn(spoilt)
        assert answer[1].isnan().all()
        assert_equal(answer[[0, 2]], net(other)[[0, 2]])
        if carry:
            for before, (_, neuron) in zip(states, snn.neurons(), strict=True):
                assert_equal(neuron.states[0][1], before[1])
        with snn.monitored(Totals()):
            assert_equal(snn(other), net(other))
    assert spoilt_totals.events == spoilt_totals.events  # a number
    if not carry:
        with snn.monitored(without := Totals()):
            snn(other[[0, 2]])
        if not how:  # silence may come later to a batch
            assert spoilt_totals.events == without.events


# ---- refusals and warnings -------------------------------------------------------------------------------------------


def test_no_quantizer_is_one_clear_refusal():
    for net in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), QuantReLU(32))):
        with pytest.raises(UserError, match=r"without quantizers .*ann2snn\.quantize"):
            convert(net)


def test_a_network_that_cannot_be_copied_is_refused():
    net = plain()
    net.lock = threading.Lock()
    with pytest.raises(UserError, match="cannot be copied"):
        convert(net)


@pytest.mark.parametrize("rule", [lambda m: prune.l1_unstructured(m, "weight", 0.5), nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_copied_after_a_call_too(rule):
    net = plain()
    rule(net[2])
    net(normal(2, 4))  # leaves a weight behind that autograd knows
    assert_same(net, normal(2, 4))


def test_unsigned_neurons_refuse_levels_below_zero_by_name():
    with pytest.raises(UserError, match=r"\b1, 4\b.*signed=True"):
        convert(plain(), signed=False)
    assert_same(chain(nn.ReLU(), quantizer(3, signed=False)), normal(2, 4), how={"signed": False})

    def run(net, x):
        return F.linear(net.q(net.a(x)), net.b.parametrizations.weight[0](net.b.weight))

    net = Made(run, a=linear(), b=linear(), q=QuantReLU(2))
    parametrize.register_parametrization(net.b, "weight", quantizer(4).double())
    assert_same(net, normal(2, 4), how={"signed": False})  # a weight may be negative


def test_options_beside_a_configuration_replace_its_fields():
    snn = convert(plain(), spiking=SpikingConfig(), schedule="stream")
    assert snn.spiking.schedule == "stream"


class Functional(nn.Module):
    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7)


def test_quantization_by_a_function_is_listed_as_real_with_a_warning():
    net = chain(quantizer(), Functional()).float()
    snn = convert(net)
    with pytest.warns(UserWarning, match=r"no neuron can stand.*\b2\b"):
        snn(normal(2, 4).float())
    assert snn.describe().reads_real == ("0", "3", "2")


def test_torchs_learnable_quantizer_is_listed_as_real_with_a_warning():
    learnable = pytest.importorskip("torch.ao.quantization._learnable_fake_quantize")._LearnableFakeQuantize
    made = learnable(torch.ao.quantization.MinMaxObserver, 0, 15)
    net = nn.Sequential(nn.Linear(4, 4), made, nn.Linear(4, 4), quantizer(), nn.Linear(4, 2)).eval()
    snn = convert(net)
    with pytest.warns(UserWarning, match="no neuron can stand, so real values run there: 1"):
        snn(normal(2, 4).float())
    assert snn.describe().reads_real == ("0", "2", "1")


def test_quantizers_that_conversion_cannot_reach_are_named_in_a_warning():
    hidden = quantizer().double()
    net = Made(lambda net, x: net.b(net.q(net.a(x))), a=linear(), b=linear(), q=quantizer())
    net.b.register_forward_pre_hook(lambda module, args: (hidden(args[0]),))
    snn = convert(net)
    with pytest.warns(UserWarning, match=r"b \(a UniformQuantizer that is not registered\)"):
        assert_equal(snn(normal(2, 4)), net(normal(2, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snn(normal(2, 4))  # said once


@pytest.mark.parametrize("options", [{"signed": False}, {"stream_norm": "per_step"}, {"if_neuron": "reference"}])
def test_carrying_is_refused_where_neurons_do_not_forget(options):
    snn = convert(chain(nn.ReLU(), quantizer(signed=False)), schedule="stream", **options)
    with pytest.raises(UserError, match="carrying needs"), snn.carrying():
        pass


# ---- what travels ----------------------------------------------------------------------------------------------------


def test_attributes_fall_through():
    net = plain()
    net.config, net.dtype, net.device = {"sample_size": 4}, torch.float64, torch.device("cpu")
    snn = convert(net)
    assert (snn.config, snn.dtype, snn.device) == ({"sample_size": 4}, torch.float64, torch.device("cpu"))
    with pytest.raises(AttributeError, match="no_such_thing"):
        snn.no_such_thing  # noqa: B018


def test_state_never_enters_a_state_dict_and_files_fit_both_ways():
    net, x = plain(), normal(2, 4)
    snn = convert(net, **SETTLED)
    keys = set(snn.state_dict())
    with snn.carrying():
        snn(x)
        assert set(snn.state_dict()) == keys == {f"net.{name}" for name in net.state_dict()}
    other = plain()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    stored = io.BytesIO()
    torch.save(other.state_dict(), stored)
    stored.seek(0)
    snn.net.load_state_dict(torch.load(stored, weights_only=True))
    assert_equal(snn(x), other(x))
    net.load_state_dict(snn.net.state_dict())
    assert_equal(net(x), other(x))


@WAYS
@pytest.mark.parametrize("moved", [copy.deepcopy, lambda snn: pickle.loads(pickle.dumps(snn)), "file"])
@pytest.mark.parametrize("called", [False, True])
def test_copies_and_pickles_run(how, moved, called):
    net, x = plain(), normal(2, 4)
    snn = convert(net, **how)
    if called:
        snn(x)
    if moved == "file":
        stored = io.BytesIO()
        torch.save(snn, stored)
        stored.seek(0)
        other = torch.load(stored, weights_only=False)
    else:
        other = moved(snn)
    with torch.no_grad():
        assert_equal(other(x), net(x))
        other.net[1].scale.mul_(3)  # its own, and what its quantizer reads
        assert not torch.equal(other(x), net(x))
        assert_equal(snn(x), net(x))


def test_another_shape_starts_from_rest_and_is_counted():
    net = plain()
    snn = convert(net)
    with torch.no_grad(), snn.carrying():
        for rows, restarts in ((2, 1), (2, 1), (3, 2), (3, 2), (2, 3)):
            x = normal(rows, 4, seed=rows + restarts)
            assert_equal(snn(x), net(x))
            assert snn.restarts == restarts
        snn.reset()
        snn(x)
        assert snn.restarts == 4


# ---- quantizers of others --------------------------------------------------------------------------------------------


class Affine(nn.Module):
    """SiLU, then y = (q − z)·s with q = clip(round half to even(x/s) + z, 0, 2^b − 1), z no multiple of s/2 away."""

    def __init__(self, bits=3, offset=0.0):
        super().__init__()
        self.top, self.offset = 2**bits - 1, offset
        self.step, self.zero = nn.Parameter(torch.tensor(0.25)), 3

    def levels(self, x):
        return torch.clamp(torch.round((x - self.offset) / self.step), -self.zero, self.top - self.zero)

    def forward(self, x):
        return self.levels(F.silu(x)) * self.step + self.offset


@pytest.mark.parametrize("offset", [0.0, 0.07])
@pytest.mark.parametrize("how", [{}, SETTLED, {"schedule": "stream", "burst": 7}])
def test_a_registered_quantizer_with_zero_point_and_half_even_rounding_is_exact(registered, offset, how):
    registered(
        Affine, lambda m: Levels(m.step, -m.zero, m.top - m.zero, m.offset, before=F.silu, level=lambda x: m.levels(x))
    )
    net = chain(Affine(offset=offset), nn.Linear(4, 4), Affine(offset=offset))
    assert names(assert_same(net, normal(64, 4), how=how)) == {"1", "3"}
    ties = Made(lambda net, x: net.q(x), q=lambda: Affine())
    ties.q.offset = 0.0
    assert_same(ties, torch.linspace(-2, 2, 33, dtype=torch.float64), how=how)


class Shifted(UniformQuantizer):
    def forward(self, x):
        return super().forward(x.sin()) + 1


class Wider(QuantReLU):
    def quantize(self, x):
        return super().quantize(x + 1)


class Pair(UniformQuantizer):
    def forward(self, x):
        return super().forward(x), self.step()


@pytest.mark.parametrize("kind", [Shifted, Wider])
def test_a_class_that_inherits_its_levels_and_computes_in_its_own_way_is_refused_by_name(kind):
    with pytest.raises(UserError, match=rf"^1 does not answer .* a {kind.__name__} computes in its own way"):
        convert(chain(kind(3)))(normal(16, 4))


def test_a_quantizer_that_answers_more_than_a_tensor_is_refused():
    net = Made(lambda net, x: net.b(net.q(net.a(x))[0]), a=linear(), b=linear(), q=Pair(3))
    with pytest.raises(UserError, match="a Pair answers a tuple"):
        convert(net)(normal(2, 4))


@WAYS
def test_what_hangs_on_a_quantizer_hangs_on_its_neuron(how):
    net = plain()
    net[1].register_forward_pre_hook(lambda module, args: args[0].tanh() * 3)
    net[1].register_forward_hook(lambda module, args, answer: answer * 2 + 1)
    snn = assert_same(net, normal(8, 4), how=how)
    assert names(snn) == {"1", "4"} and snn.describe().reads_real == ("0", "2")
    with torch.no_grad(), snn.carrying():
        for seed in range(3):
            assert_equal(snn(normal(8, 4, seed=seed)), net(normal(8, 4, seed=seed)))


def test_a_quantizer_may_be_called_by_keyword():
    net = Made(lambda net, x: net.b(net.p(net.a(net.q(x=net.a(x))))), **_parts())
    snn = assert_same(net, normal(2, 4), how=SETTLED)
    assert names(snn) == {"q", "p"} and snn.describe().reads_spikes == ("a", "b")


@pytest.mark.parametrize("scheme", ["tensor", "channel"])
@pytest.mark.parametrize("how", [{}, SETTLED, {"schedule": "stream", "burst": 15}])
def test_torch_fake_quantize_is_exact(scheme, how):
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

    torch.manual_seed(0)
    if scheme == "tensor":
        fake = FakeQuantize(MinMaxObserver, 0, 15, dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    else:
        kind = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 1}
        fake = FakeQuantize(PerChannelMinMaxObserver, -8, 7, **kind)
    net = nn.Sequential(nn.Linear(6, 5), fake, nn.Linear(5, 4)).eval()
    x = normal(20, 6).float()
    net(x)
    with pytest.raises(UserError, match="observer is on"):
        convert(net)
    fake.disable_observer()
    assert names(assert_same(net, normal(20, 6, seed=1).float(), how=how)) == {"1"}


# ---- torch's attention -----------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_attention_between_quantizers(how, batch_first):
    def run(net, x):
        h = net.q(net.a(x))
        return net.b(net.p(net.attention(h, h, h, need_weights=False)[0]))

    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    net = Made(run, a=linear(), b=linear(), q=quantizer(), p=quantizer(), attention=attention)
    x = normal(2, 3, 4)
    described = assert_same(net, x, how=how).describe()
    projections = tuple(f"attention:{part}" for part in ("query", "key", "value"))
    products = ("attention:query·key", "attention:weights·value", "attention:output")
    assert described.reads_spikes == (*projections, "b") and described.reads_real == ("a", *products)
    rows, length = (2, 3) if batch_first else (3, 2)
    macs = rows * (6 * length * 4 * 4 + 2 * length * length * 4)
    assert sum(synapses.macs for synapses in described.synapses) == macs


@WAYS
def test_torch_encoder_layers_with_quantizers_for_activations(how):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=QuantReLU(3), batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    snn = assert_same(net, normal(2, 3, 8), how=how)
    assert names(snn) == {"layers.0.activation", "layers.1.activation"} and not snn.describe().unread


# ---- measures --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    sample: torch.Tensor


def test_answers_in_dataclasses_are_measured():
    net = Made(lambda net, x, t: Answer(net.p(net.b(net.q(net.a(x))))), **_parts())
    net.p = quantizer(3, step=0.05).double()
    report = measure_gap(net, convert(net, schedule="stream"), normal(64, 4), torch.zeros(64), batch_size=64)
    assert 0 < report.prediction.error < 1
