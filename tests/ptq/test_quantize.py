"""Where quantizers are put, what they are set to, and what is refused, on toy networks."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import ann2snn
from ann2snn import UserError, quantize
from quant import QuantReLU, UniformQuantizer, fit_step


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sites(net):
    """Names of the modules that have a quantizer in front, and behind."""
    named = list(net.named_modules())
    return [n for n, m in named if hasattr(m, "input_quantizer")], [
        n for n, m in named if hasattr(m, "output_quantizer")
    ]


def without_quantizers(net):
    """The quantized network with identities in place of its quantizers."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, UniformQuantizer):
                setattr(module, name, nn.Identity())
    return net


def toy(seed=0):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.SiLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 64, 5)).double()


IMAGES = normal(4, 3, 4, 4)


class Graph(nn.Module):
    """A layer called twice, a skip, a concatenation, a product, a time embedding, writes into slices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))
        self.labels = nn.Embedding(5, 4)
        self.of_labels = nn.Linear(4, 8)
        self.first = nn.Conv1d(2, 8, 3, padding=1)
        self.beside = nn.Conv1d(2, 8, 1)  # reads the raw input as well
        self.twice = nn.Conv1d(8, 8, 3, padding=1)
        self.joined = nn.Conv1d(16, 8, 1)
        self.filled = nn.Linear(8, 3)
        self.sized = nn.Linear(3, 3)
        self.listed = [self.joined]

    def forward(self, x, features, label):
        time = self.embed(features) * self.of_labels(self.labels(label))
        h = self.first(x) + self.beside(x[:, :, :]) + time[:, :, None]
        h = self.twice(self.twice(h).relu_())
        h = self.listed[0](torch.cat([h, self.first(x)], 1))
        buffer = torch.zeros_like(h[:, :, 0])
        buffer[:, :4] = h.mean(2)[:, 4:]
        return self.filled(input=buffer) + self.sized(torch.ones_like(buffer)[:, :3])


def graph_call():
    return (normal(6, 2, 7), normal(6, 4, seed=1), torch.arange(6) % 5)


def test_quantizers_stand_before_the_layers_that_another_layer_reaches():
    net = Graph().double()
    quantized = quantize(net, 8, [graph_call()])
    assert sites(quantized) == (["embed.2", "twice", "joined", "filled"], [])
    want = net(*graph_call())
    assert (quantized(*graph_call()) - want).norm() < 0.03 * want.norm()
    assert torch.equal(without_quantizers(quantized)(*graph_call()), want)


def test_error_grows_as_bits_go_away_and_the_original_is_left_alone():
    net = toy().train()
    seen = []
    net[2].register_forward_hook(lambda module, args, output: seen.append(len(seen)))
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(5)
    state, hooks = torch.get_rng_state(), len(net[2]._forward_hooks)
    quantized = [quantize(net, bits, [IMAGES]) for bits in (8, 6, 4, 2)]
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert len(net[2]._forward_hooks) == hooks and not net[2]._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state) and not any(isinstance(m, UniformQuantizer) for m in net.modules())
    want = net(IMAGES)
    errors = [((q(IMAGES) - want).norm() / want.norm()).item() for q in quantized]
    assert errors[0] < 0.02 and errors == sorted(errors)
    assert not quantized[0].training and seen


def test_randomness_of_a_forward_pass_does_not_reach_the_global_state():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.randn_like(x))

    net = Noisy(*toy())
    state = torch.get_rng_state()
    quantize(net, 4, [IMAGES])
    assert torch.equal(torch.get_rng_state(), state)


def test_signs_follow_the_data_unless_they_are_forced():
    def signs(**options):
        return [m.signed for m in quantize(toy(), 4, [IMAGES], **options).modules() if isinstance(m, UniformQuantizer)]

    assert signs() == [False, True, True]  # behind ReLU, SiLU, a layer
    assert signs(signed=True) == [True] * 3 and signs(signed=False) == [False] * 3


def test_one_negative_value_of_one_call_is_enough_for_signed_levels():
    net = nn.Sequential(nn.Linear(2, 40000, bias=False), nn.Linear(40000, 1)).double()
    nn.init.zeros_(net[0].weight)
    net[0].weight.data[0, 0] = 1.0
    calls = [torch.tensor([[value, 0.0]], dtype=torch.float64) for value in (1.0, -1.0, 1.0)]
    assert quantize(net, 4, calls)[1].input_quantizer.signed
    assert not quantize(net, 4, calls[:1])[1].input_quantizer.signed


@pytest.mark.parametrize("options", [{}, {"granularity": "channel"}, {"method": "percentile", "percentile": 99.0}])
def test_each_layer_is_fitted_to_inputs_that_are_quantized_already(options):
    """Against the same steps found one layer after the other, by cutting the network."""
    quantized, net = quantize(toy(), 3, [IMAGES], **options), toy()
    with torch.no_grad():
        x = net[1](net[0](IMAGES))
        for i in (2, 4, 6):
            found = quantized[i].input_quantizer
            channel = options.get("granularity") == "channel"
            axis = -1 if isinstance(net[i], nn.Linear) else 1
            values = x.movedim(axis, 0).flatten(1) if channel else x.reshape(1, -1)
            want = fit_step(values, found.lo, found.hi, *(options[k] for k in ("method", "percentile") if k in options))
            torch.testing.assert_close(found.scale, want.double().reshape(found.scale.shape), rtol=1e-6, atol=0)
            assert found.channels == (x.shape[axis] if channel else None)
            x = net[i](found(x))
            x = net[i + 1](x) if i + 1 < len(net) else x


def test_a_shared_layer_is_quantized_once_and_stays_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(self.first(x)))

    quantized = quantize(Shared(), 4, [torch.randn(3, 4)])
    assert quantized.a is quantized.b and sum(isinstance(m, UniformQuantizer) for m in quantized.modules()) == 1


def test_calls_may_be_tuples_dicts_pairs_or_a_tensor_and_are_given_as_copies():
    class Eater(nn.Module):
        """Empties the list that it is given, and writes into its input."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, extra=None):
            if extra is not None:
                x = x.add_(extra["list"].pop())
            return self.b(self.a(x).relu_())

    x, extra = torch.randn(5, 3), {"list": [torch.ones(5, 3)]}
    before = x.clone()
    calls = [x, (x,), {"x": x, "extra": extra}, ((x,), {"extra": extra})]
    scales = [quantize(Eater(), 4, [call]).b.input_quantizer.scale.item() for call in calls]
    assert scales[0] == scales[1] != scales[2] == scales[3]
    assert torch.equal(x, before) and len(extra["list"]) == 1
    net = quantize(Eater(), 4, (call for call in calls[3:]))
    args, kwargs = net.example_call
    assert torch.equal(args[0], x) and args[0] is not x and len(kwargs["extra"]["list"]) == 1
    assert not any("example" in key for key in net.state_dict())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_pickles_are_the_same_network(again, monkeypatch):
    quantized = quantize(toy(), 3, [IMAGES], granularity="channel")
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a new process
    twin = again(quantized)
    calls = []
    for module in twin.modules():
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
    assert torch.equal(twin(IMAGES), quantized(IMAGES))
    assert sum(isinstance(m, UniformQuantizer) for m in calls) == 3
    assert twin[2].input_quantizer is not quantized[2].input_quantizer


def test_a_state_dict_goes_into_a_network_quantized_on_other_data():
    trained, other = quantize(toy(), 3, [IMAGES]), quantize(toy(seed=3), 3, [IMAGES.abs()], signed=True)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other(IMAGES), trained(IMAGES))
    assert set(toy().state_dict()) <= set(trained.state_dict())  # the layers keep their names


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weights_and_steps_learn_together(granularity):
    quantized, want = quantize(toy(), 2, [IMAGES], granularity=granularity).train(), normal(4, 5, seed=9)
    optimizer = torch.optim.Adam(quantized.parameters(), lr=3e-3)
    before = {name: value.detach().clone() for name, value in quantized.named_parameters()}
    losses = []
    for _ in range(40):
        loss = (quantized(IMAGES) - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in quantized.named_parameters())


def test_what_was_quantized_in_inference_mode_can_be_trained_too():
    with torch.inference_mode():
        quantized = quantize(toy(), 4, [IMAGES + 0])
    quantized(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in quantized.parameters())


def test_skip_takes_names_beginnings_patterns_and_classes():
    class Block(nn.Sequential):
        pass

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), Block(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3)))

    def quantized(*skip):
        return sites(quantize(net, 4, [torch.randn(2, 3)], skip=skip))[0]

    assert quantized() == ["1.0", "1.1", "2.0"]
    assert quantized("1.1") == ["1.0", "2.0"] and quantized("1") == ["2.0"] and quantized("?.0") == ["1.1"]
    assert quantized(Block) == ["2.0"] and quantized("1.0", "1.1", "1") == ["2.0"]
    assert sites(quantize(net, 4, [torch.randn(2, 3)], skip="2"))[0] == ["1.0", "1.1"]
    for entry, message in [("3", "skip=3"), ("1.", "skip=1"), (nn.Conv2d, "skip=Conv2d"), (3, "skip=3")]:
        with pytest.raises(UserError, match=message):
            quantized(entry)


def test_layers_that_never_run_are_named_with_the_cure():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.read, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.last = nn.Linear(3, 3)

        def forward(self, x):
            return self.last(nn.functional.linear(self.first(x), self.read.weight))

    with pytest.raises(UserError, match=r"never calls read, unused.*skip="):
        quantize(Functional(), 4, [torch.randn(2, 3)])
    assert sites(quantize(Functional(), 4, [torch.randn(2, 3)], skip=["read", "unused"]))[0] == ["last"]


def test_a_path_that_quantization_closes_is_named():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
            for layer in (self.a, self.b, self.c):
                nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)

        def forward(self, x):
            y = self.b(self.a(x))
            return self.c(y) if y.max() == x.max() else y

    with pytest.raises(UserError, match="the quantized network never calls c"):
        quantize(Branch(), 2, [torch.tensor([[0.337], [1.0], [0.9], [0.35]])], percentile=60, method="percentile")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_values_that_are_not_finite_are_refused_by_name(value, where):
    net, x = toy(), IMAGES.clone()
    if where:
        net[0].bias.data[3] = value
    else:
        x[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=f"calibration: {where} is given values that are not finite"):
        quantize(net, 4, [x])


def test_empty_batches_fit_no_range():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match="calibration gives 1 empty batches alone"):
        ann2snn.quantize(net, 4, [torch.zeros(0, 2)])
    some = [torch.full((1, 2), 3.0)]
    steps = [ann2snn.quantize(net, 4, calls)[1].input_quantizer.scale for calls in (some, [torch.zeros(0, 2), *some])]
    assert torch.equal(*steps)


def test_what_cannot_be_quantized_is_refused_in_one_line():
    x = torch.randn(2, 3)
    quantized = quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 4, [x])
    cases = [
        (quantized, "quantized already .*UniformQuantizer"),
        (nn.Sequential(nn.Linear(3, 3), QuantReLU(4), nn.Linear(3, 3)), "quantized already .*QuantReLU"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "nothing to quantize"),
        (nn.Linear(3, 3), "nothing to quantize"),
        (nn.ReLU(), "nothing to quantize"),
        (lambda x: x, "net is a function"),
    ]
    for net, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            quantize(net, 4, [x])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits=1: use"),
        ({"bits": 32}, "bits=32"),
        ({"bits": 4.0}, "bits=4.0"),
        ({"bits": True}, "bits=True"),
        ({"signed": "no"}, "signed='no': use"),
        ({"signed": 1}, "signed=1"),
        ({"granularity": "group"}, "granularity='group': use"),
        ({"method": "kl"}, "method='kl': use"),
        ({"percentile": 0}, "percentile=0: use"),
        ({"percentile": 101.0}, "percentile=101.0"),
        ({"percentile": "99"}, "percentile='99'"),
        ({"calibrate": []}, "calibrate has no call"),
        ({"calibrate": torch.zeros(2, 3)}, "calibrate is a Tensor"),
        ({"calibrate": {"x": 1}}, "calibrate is a dict"),
        ({"calibrate": None}, "calibrate is a NoneType"),
        ({"calibrate": [[torch.zeros(2, 3)]]}, "a call of calibrate is a list"),
    ],
)
def test_bad_arguments_are_named_with_their_value(options, message):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(UserError, match=message):
        quantize(net, **{"bits": 4, "calibrate": [torch.zeros(2, 3)]} | options)


def test_numpy_integers_are_integers():
    net = quantize(toy(), np.int64(3), [IMAGES])
    assert net[2].input_quantizer.bits == 3 and type(net[2].input_quantizer.bits) is int


def test_subclasses_of_layers_are_called_as_their_own_forward_wants():
    class Scaled(nn.Linear):
        def forward(self, hidden, scale=1.0):
            return scale * super().forward(hidden)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = Scaled(3, 3), Scaled(3, 3)

        def forward(self, x):
            return self.b(scale=0.5, hidden=self.a(x, 2.0)).to(self.b.weight.dtype)

    x = torch.randn(4, 3)
    net, quantized = Net(), quantize(Net(), 8, [x])
    assert isinstance(quantized.b, Scaled) and quantized.b.in_features == 3
    torch.testing.assert_close(quantized(x), net(x), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compiled_parts_stay_as_they_are():
    net = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Sequential(nn.Linear(3, 3))), nn.Linear(3, 3))
    assert sites(quantize(net, 4, [torch.randn(2, 3)]))[0] == ["2"]


def test_our_full_precision_network_can_be_quantized():
    torch.manual_seed(0)
    shape = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "image_size": 8}
    net = ann2snn.build_unet(**shape, bit=32).double().eval()
    call = (normal(2, 3, 8, 8), torch.tensor([50, 700]))
    quantized = quantize(net, 8, [call])
    floats = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert set(floats) - set(sites(quantized)[0]) == {"head", "time_embedding.timembedding.1"}
    assert (quantized(*call) - net(*call)).norm() < 0.05 * net(*call).norm()
