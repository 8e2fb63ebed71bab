"""SDDPM and SDM against golden values of the published programs, and against the equations a time step at a time."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP, analytic_statistics, sample_ddim, sample_ddpm
from ann2snn.diffusion.samplers import sample_analytic_dpm, sample_dpm_solver
from ann2snn.diffusion.samplers.strided import analytic_times
from ann2snn.errors import UserError
from ann2snn.kernels import LIFRule
from ann2snn.nets.sddpm import CORRECTIONS, SDDPM, SDDPMBlock, SDDPMConfig, TSMConv, with_tsm
from ann2snn.neurons import StepBatchNorm
from tests.diffusion.vp_exact import Draws, no_noise
from tests.fill import deterministic_fill
from tests.helpers import assert_equal
from tests.nets.sddpm_exact import StepByStep, published_keys

SMALL = SDDPMConfig(in_channels=1, image_size=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, spike_steps=4)
TIMES = torch.tensor([3, 900])


def small(dtype: torch.dtype = torch.float32, **options) -> SDDPM:
    net = SDDPM(replace(SMALL, **options)).eval()
    deterministic_fill(net)
    return net.to(dtype)


def batch(rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return 1.5 * torch.sin(0.05 * torch.arange(64 * rows, dtype=torch.float64)).view(rows, 1, 8, 8).to(dtype)


class Rates:
    """Monitor that keeps every layer's share of spikes."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def record(self, neuron: nn.Module, events: Tensor, is_count: bool) -> None:
        assert not is_count and ((events == 0) | (events == 1)).all()
        self.rates.append(float(events.float().mean()))

    @property
    def mean(self) -> float:
        return sum(self.rates) / len(self.rates)


@torch.no_grad()
def rates_of(net: SDDPM, *inputs: Tensor) -> Rates:
    rates = Rates()
    with net.monitored(rates):
        net(*inputs)
    return rates


def heard(net: nn.Module, *inputs: Tensor, ending: str) -> dict[str, Tensor]:
    """Name → first input of every module whose name ends so."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0].detach()}))
        for name, module in net.named_modules()
        if name.endswith(ending)
    ]
    with torch.no_grad():
        net(*inputs)
    for handle in handles:
        handle.remove()
    return found


def is_spikes(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


# ---- the equations --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"tsm": True}, {"tsm": True, "spike_steps": 7, "num_res_blocks": 2}])
@pytest.mark.parametrize("theta", [1.0, 0.9])
def test_the_equations_a_step_at_a_time(options, theta):
    net, x = small(torch.float64, **options), batch(dtype=torch.float64)
    net.set_threshold(theta)
    torch.testing.assert_close(net(x, TIMES), StepByStep(net, theta)(x, TIMES), rtol=1e-9, atol=1e-9)


# ---- golden values --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_forward(dtype):
    net = SDDPM(SMALL).eval()
    assert len(deterministic_fill(net)) == 185
    net = net.to(dtype)
    out = net(batch(dtype=dtype), TIMES)
    first = [1.661786, 3.891448, 5.299636, 5.952100, 6.568486, 6.413969]
    assert out.flatten()[:6].tolist() == pytest.approx(first, abs=1e-4)
    assert float(out.sum()) == pytest.approx(157.89056, abs=1e-4)
    assert float(out.abs().sum()) == pytest.approx(210.29415, abs=1e-4)
    rates = rates_of(net, batch(dtype=dtype), TIMES)
    assert len(rates.rates) == 19 and rates.mean == pytest.approx(0.157415, abs=1e-6)


@torch.no_grad()
def test_tsm_is_another_network_unless_every_factor_is_1():
    net = SDDPM(replace(SMALL, tsm=True)).eval()
    assert len(deterministic_fill(net)) == 211
    plain = SDDPM(SMALL).eval()
    plain.load_state_dict({k.replace(".tsmconv", ""): v for k, v in net.state_dict().items() if "tsmp" not in k})
    assert not torch.allclose(net(batch(), TIMES), plain(batch(), TIMES), atol=0.1)
    for name, parameter in net.named_parameters():
        if name.endswith("tsmp"):
            parameter.fill_(1)
    assert_equal(net(batch(), TIMES), plain(batch(), TIMES))


def test_a_tsm_convolution_scales_its_bias_too():
    conv = nn.Conv2d(1, 1, 1)
    nn.init.constant_(conv.weight, 2), nn.init.constant_(conv.bias, 1)
    layer = TSMConv(conv, 2)
    assert layer.tsmp.tolist() == [[[[[1.0]]]], [[[[1.0]]]]]
    layer.tsmp.data[1] = 0.5
    x = torch.tensor([1.0, 1.0, 3.0, 3.0]).view(2, 1, 1, 2)  # steps × one image of two pixels
    assert layer(x).flatten().tolist() == [3, 3, 3.5, 3.5]


@pytest.mark.parametrize(("steps", "of_ones"), [(4, 2.952), (8, 4.161139)])
def test_the_readout_is_a_leaky_sum(steps, of_ones):
    net = SDDPM(replace(SMALL, spike_steps=steps))
    assert net.readout(torch.ones(steps, 2, 1, 3, 3)).flatten().tolist() == pytest.approx([of_ones] * 18, rel=1e-6)
    for step, one_hot in enumerate(torch.eye(steps).view(steps, steps, 1, 1, 1, 1)):
        assert float(net.readout(one_hot)) == pytest.approx(0.8 ** (steps - 1 - step))


def test_alphas_bar_of_the_process():
    alphas_bar = VP(DiffusionConfig()).alphas_bar
    table = {0: 0.9999, 1: 0.99978009, 9: 0.9981052, 19: 0.99423095, 99: 0.89701814, 499: 0.078587239}
    table |= {979: 6.0219117e-5, 999: 4.0358307e-5}
    assert alphas_bar[list(table)].tolist() == pytest.approx(list(table.values()), rel=1e-6)


# ---- sizes and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "steps", "parameters", "keys"),
    [(3, None, 66_696_413, 455), (1, None, 66_691_725, 455), (3, 8, 66_696_949, 522), (3, 4, 66_696_681, 522)],
)
def test_sizes_and_names_are_the_published_ones(channels, steps, parameters, keys):
    with torch.device("meta"):
        net = SDDPM(SDDPMConfig(in_channels=channels, tsm=steps is not None, spike_steps=steps or 4))
    assert sum(p.numel() for p in net.parameters()) == parameters
    state = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert state == published_keys(channels, steps) and len(state) == keys
    assert sum(1 for _ in net.neurons()) == 51 and all(neuron.rule == LIFRule() for _, neuron in net.neurons())
    kinds = [type(module) for module in net.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(StepBatchNorm)) == (67, 54)


def test_fresh_weights():
    torch.manual_seed(0)
    plain, tsm, corrected = (
        SDDPM(replace(SMALL, tsm=tsm, corrections=which)) for tsm, which in ((False, ()), (True, ()), (True, ("init",)))
    )
    conv1 = plain.middleblocks[0].conv1  # Xavier: variance 2/(fan_in + fan_out)
    assert float(conv1.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 32 + 9 * 32)), rel=0.03)
    assert not conv1.bias.any() and not plain.conv.bias.any() and plain.conv_identity.bias.any()
    bound = 1 / math.sqrt(9 * 16)  # PyTorch's default
    assert 0.9 * bound < float(plain.conv_identity.weight.detach().abs().max()) <= bound
    assert plain.T_output_layer.bias.any()
    assert float(plain.tail_conv.weight.detach().abs().max()) < 1e-5
    assert float(tsm.tail_conv.tsmconv.weight.detach().abs().max()) > 0.1
    assert float(corrected.tail_conv.tsmconv.weight.detach().abs().max()) < 1e-5
    for net, silent in ((plain, False), (tsm, False), (corrected, True)):  # the side branch
        sent: list[Tensor] = []
        net.last_bn.register_forward_hook(lambda _, args, out, sent=sent: sent.append(out.detach()))
        net.train()(batch(), TIMES)
        assert bool(sent[0].any()) != silent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spike_steps": 0}, "--timestep=0"),
        ({"spike_steps": 10**9}, "--timestep"),
        ({"threshold": 0.0}, "--threshold=0.0"),
        ({"threshold": math.nan}, "--threshold=nan"),
        ({"surrogate": "step"}, "--surrogate=step"),
        ({"corrections": ("tail", "tail")}, "--corrections=tail,tail"),
        ({"corrections": ("nothing",)}, "--corrections=nothing"),
        ({"tsm": 1}, "--tsm=1"),
        ({"ch": 15}, "--ch=15"),
        ({"image_size": 9}, "--img_size=9"),
        ({"ch_mult": ()}, "--ch_mult"),
    ],
)
def test_settings_that_make_no_network_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **options)


def test_settings_survive_storing():
    config = replace(SMALL, tsm=True, corrections=("tail", "shortcut"), threshold=0.9, surrogate="triangle")
    assert SDDPMConfig(**config.to_dict()) == config


# ---- TSM by inheritance ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_inheriting_changes_nothing_and_a_factor_does(training):
    net = small().train(training)
    new = with_tsm(net)
    assert new.training == training and new.config == replace(SMALL, tsm=True)
    missing = new.load_state_dict(
        {
            k if k in new.state_dict() else k.replace(".weight", ".tsmconv.weight").replace(".bias", ".tsmconv.bias"): v
            for k, v in net.state_dict().items()
        },
        strict=False,
    )
    assert not missing.unexpected_keys and len(missing.missing_keys) == 26
    assert all(key.endswith(".tsmp") for key in missing.missing_keys)
    assert_equal(new(batch(), TIMES), net(batch(), TIMES))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), new.buffers(), strict=True))  # running statistics
    for name, parameter in new.eval().named_parameters():
        if name.endswith("tsmp"):
            before = new(batch(), TIMES)
            parameter[-1] *= 1.5
            assert not torch.equal(new(batch(), TIMES), before), name
            parameter[-1] /= 1.5


@torch.no_grad()
def test_a_network_of_4_steps_seeds_one_of_8():
    net = small(torch.float64)
    longer = with_tsm(net, 8)
    assert longer.spike_steps == 8 and longer.conv.tsmp.shape == (8, 1, 1, 1, 1)
    same = SDDPM(replace(SMALL, spike_steps=8)).eval().double()
    same.load_state_dict(net.state_dict())
    assert_equal(longer(batch(dtype=torch.float64), TIMES), same(batch(dtype=torch.float64), TIMES))
    with pytest.raises(UserError, match="TSM already"):
        with_tsm(longer)
    with pytest.raises(UserError, match="--timestep=1000"):
        with_tsm(net, 1000)


# ---- threshold guidance ---------------------------------------------------------------------------------------------


def test_threshold_guidance_lets_all_neurons_fire_more():
    net = small(tsm=True)
    before, state = rates_of(net, batch(), TIMES).mean, copy.deepcopy(net.state_dict())
    net.set_threshold(0.9)
    assert net.threshold == 0.9 and all(neuron.rule.threshold == 0.9 for _, neuron in net.neurons())
    assert rates_of(net, batch(), TIMES).mean > before
    assert net.config.threshold == 1.0  # that of the training
    other = SDDPM(replace(net.config, threshold=1.2))
    assert other.threshold == 1.2
    other.load_state_dict(state)
    for bad in (0, -1, math.nan, math.inf, "1"):
        with pytest.raises(UserError, match="--threshold"):
            net.set_threshold(bad)
    assert net.threshold == 0.9


# ---- diffusion time -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_its_projections_the_time_has_no_influence():
    net, later = small(), torch.tensor([900, 3])
    assert not torch.allclose(net(batch(), TIMES), net(batch(), later), atol=1e-2)
    for module in net.modules():
        if isinstance(module, SDDPMBlock):
            module.temb_proj[1].weight.zero_(), module.temb_proj[1].bias.zero_()
    assert_equal(net(batch(), TIMES), net(batch(), later))


@torch.no_grad()
def test_the_embedding_is_the_same_current_at_every_step_before_the_second_neuron():
    net = small(torch.float64)
    x = batch(dtype=torch.float64)
    outputs = {}
    for name, module in net.named_modules():
        if name.endswith((".bn1", "temb_proj")):
            module.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
    found = heard(net, x, TIMES, ending=".neuron2")
    assert len(found) == 8
    for name, current in found.items():
        block = name.removesuffix(".neuron2")
        added = (current - outputs[f"{block}.bn1"]).view(4, 2, *current.shape[1:])
        wanted = outputs[f"{block}.temb_proj"][None, :, :, None, None].expand_as(added)
        torch.testing.assert_close(added, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_fractional_times_lie_between_whole_ones():
    net = small(torch.float64)
    x = batch(dtype=torch.float64)
    assert_equal(net(x, TIMES.double()), net(x, TIMES))
    angles = [3.25 * math.exp(-i * math.log(10000) / 8) for i in range(8)]
    waves = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    table = net.time_embedding.timembedding[0]
    assert table(torch.tensor([3.25], dtype=torch.float64))[0].tolist() == pytest.approx(waves, abs=1e-6)
    row = [0.841471, 0.540302, 0.099833, 0.995004, 0.01, 0.99995, 0.001, 1.0]
    assert SDDPM(replace(SMALL, ch=8)).time_embedding.timembedding[0].weight[1].tolist() == pytest.approx(row, abs=1e-6)


# ---- no memory between calls ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_call_leaves_nothing_behind():
    first = small(torch.float64)(batch(dtype=torch.float64), TIMES)
    net = small(torch.float64)
    net(batch(3, torch.float64).flip(3), torch.tensor([1, 2, 3]))
    assert_equal(net(batch(dtype=torch.float64), TIMES), first)
    assert_equal(net(batch(dtype=torch.float64), TIMES), first)


def test_the_same_noise_gives_the_same_images_again():
    net, fresh = (small(torch.float64, diffusion_steps=6) for _ in range(2))
    vp, x_T = VP(DiffusionConfig(diffusion_steps=6)), batch(dtype=torch.float64)
    images = [sample_ddpm(n, vp, x_T, noise=Draws(x_T.shape, seed=3)) for n in (net, net, fresh)]
    assert_equal(images[0], images[1]), assert_equal(images[0], images[2])


# ---- samplers -------------------------------------------------------------------------------------------------------


def test_ddim_of_the_published_program_is_deterministic_and_leaves_the_range_of_images():
    net, vp = small(), VP(DiffusionConfig())
    options = {"noise": no_noise, "steps": 10, "skip": "sddpm", "denoise": False, "clip": True}
    first, second = (sample_ddim(net, vp, batch(), **options) for _ in range(2))
    assert_equal(first, second)
    assert torch.isfinite(first).all() and float(first.abs().max()) > 1


def test_every_kind_of_sampler_makes_finite_images():
    net = small(tsm=True, diffusion_steps=20)
    vp, x_T = VP(DiffusionConfig(diffusion_steps=20)), batch()

    def noise() -> Tensor:
        return torch.randn(x_T.shape)

    times = analytic_times(vp, 5, statistics=torch.ones(20))
    statistics = analytic_statistics(net, vp, [batch().clamp(-1, 1)], times)
    for sampler, options in (
        (sample_ddpm, {}),
        (sample_ddim, {"steps": 5}),
        (sample_dpm_solver, {"steps": 6, "order": 3}),
        (sample_analytic_dpm, {"steps": 5, "statistics": statistics}),
    ):
        images = sampler(net, vp, x_T, noise=noise, **options)
        assert images.shape == x_T.shape and torch.isfinite(images).all() and float(images.abs().max()) <= 1


# ---- training -------------------------------------------------------------------------------------------------------


def trained_call(net: SDDPM, **options) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(loss, gradients, buffers) of a call in training mode, with dropout's masks always the same."""
    torch.manual_seed(0)
    net.train().zero_grad()
    loss = net(batch(dtype=torch.float64), TIMES).square().mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: value.clone() for name, value in net.named_buffers()}


@pytest.mark.parametrize("options", [{}, {"tsm": True, "dropout": 0.3, "corrections": ("dropout", "tail")}])
def test_recomputing_changes_nothing(options):
    kept, again = small(torch.float64, **options), small(torch.float64, **options)
    again.recompute = True
    for _ in range(2):
        a, b = trained_call(kept), trained_call(again)
        assert abs(float(a[0] - b[0])) < 1e-12
        for wanted, found in zip(a[1:], b[1:], strict=True):
            assert wanted.keys() == found.keys()
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-12, msg=name)
    assert int(again.bn.num_batches_tracked) == int(again.middleblocks[0].bn1.num_batches_tracked) == 2


def test_every_parameter_but_the_table_of_times_learns():
    for tsm in (False, True):
        net = small(torch.float64, tsm=tsm)
        _, gradients, _ = trained_call(net)
        assert set(gradients) == {n for n, _ in net.named_parameters()} - {"time_embedding.timembedding.0.weight"}
        # A bias before a norm has no influence.
        dead = {name for name, gradient in gradients.items() if not name.endswith("bias") and not gradient.any()}
        assert not dead, dead


def test_autocast_keeps_spikes_what_they_are():
    net, plain = small(), small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rates = rates_of(net, batch(), TIMES)  # asserts 0 and 1
        found = heard(net, batch(), TIMES, ending=".conv1")
        loss = net.train()(batch(), TIMES).float().square().mean()
    loss.backward()
    assert rates.mean == pytest.approx(rates_of(plain, batch(), TIMES).mean, rel=0.1)
    assert found and all(is_spikes(x) for x in found.values())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# ---- corrections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tsm", [False, True])
def test_corrections_keep_names_and_shapes(tsm):
    with torch.device("meta"):
        published = SDDPM(replace(SMALL, tsm=tsm)).state_dict()
        for which in (*((name,) for name in CORRECTIONS), tuple(CORRECTIONS)):
            corrected = SDDPM(replace(SMALL, tsm=tsm, corrections=which)).state_dict()
            assert {k: v.shape for k, v in corrected.items()} == {k: v.shape for k, v in published.items()}


def spiking_inputs(ending: str, **options) -> set[bool]:
    return {is_spikes(x) for x in heard(small(**options), batch(), TIMES, ending=ending).values()}


def test_corrected_shortcuts_and_tail_read_spikes():
    # A shortcut that is no convolution goes on adding the real-valued input.
    convolutions = [
        b.shortcut for b in small().modules() if isinstance(b, SDDPMBlock) and list(b.shortcut.parameters())
    ]
    for options in ({}, {"tsm": True}):
        net = small(corrections=("shortcut",), **options)
        found = heard(net, batch(), TIMES, ending=".shortcut")
        identity = {name: isinstance(net.get_submodule(name), nn.Identity) for name in found}
        assert sum(not plain for plain in identity.values()) == len(convolutions) == 5
        assert all(is_spikes(x) != identity[name] for name, x in found.items())
        assert spiking_inputs(".shortcut", **options) == {False}
        assert spiking_inputs("tail_conv", corrections=("tail",), **options) == {True}
        assert spiking_inputs("tail_conv", **options) == {False}


def test_the_corrected_readout_does_not_depend_on_the_number_of_steps():
    for steps in (1, 4, 8):
        net = SDDPM(replace(SMALL, spike_steps=steps, corrections=("readout",)))
        assert float(net.readout(torch.ones(steps, 1, 1, 1, 1))) == pytest.approx(1)
        weights = [float(net.readout(row)) for row in torch.eye(steps).view(steps, steps, 1, 1, 1, 1)]
        assert all(b / a == pytest.approx(1.25) for a, b in zip(weights, weights[1:], strict=False))


def test_dropout_acts_only_where_it_is_corrected():
    published = small(dropout=0.5).train()
    assert_equal(published(batch(), TIMES), published(batch(), TIMES))
    net = small(dropout=0.5, corrections=("dropout",))
    assert spiking_inputs(".conv2", dropout=0.5, corrections=("dropout",)) == {True}  # not in eval mode
    found = heard(net.train(), batch(), TIMES, ending=".conv2")
    values = set().union(*(x.unique().tolist() for x in found.values()))
    assert values == {0.0, 2.0}
    # Its masks are those of the whole batch, whichever rows a process has.
    masks = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        dropout = net.middleblocks[0].dropout
        dropout.part = (rows.start, 2)
        torch.manual_seed(0)
        ones = torch.ones(4, 2, 3, 2, 2)[:, rows].flatten(0, 1)
        masks.append(dropout(ones).view(4, -1, 3, 2, 2))
    assert_equal(torch.cat(masks[1:], dim=1), masks[0])
    assert not torch.equal(masks[0][0], masks[0][1])  # of each time step its own
