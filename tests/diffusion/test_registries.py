"""A process and a sampler of one's own: a class or function, one line in a registry, and the rest knows them."""

import math

import numpy as np
import pytest
import torch

import ann2snn
from ann2snn.config import PROCESSES, SAMPLERS, DiffusionConfig, Kind, SampleConfig, Sampler
from ann2snn.config.code import Code
from ann2snn.diffusion.continuous_time import ContinuousTime
from ann2snn.diffusion.linear_process import LinearProcess, scalars
from ann2snn.diffusion.process import check_sampling, make_process, network_channels, run_sampler
from ann2snn.diffusion.vp import VP
from ann2snn.errors import UserError
from tests.diffusion.vp_exact import Draws


class Decay(ContinuousTime):
    """du = −4u dt + √8 dw, Ornstein and Uhlenbeck's."""

    t_start, t_end, layer, config = 1.0, 1e-3, 1e-2, 8.0

    def transition(self, t, s):
        return scalars(np.exp(-self.config / 2 * (np.asarray(t) - s)))

    def covariance(self, t):
        return scalars(-np.expm1(-self.config * np.asarray(t)))

    def factor(self, t, kind="R"):
        return np.sqrt(self.covariance(t))

    def drift(self, t):
        return scalars(np.full_like(np.asarray(t, dtype=float), -self.config / 2))

    def diffusion(self, t):
        return scalars(np.full_like(np.asarray(t, dtype=float), self.config))


def one_call(net, process, x, *, noise, clip, on_step, steps):
    """x_0 of a single call at the last time."""
    last = process.diffusion_steps - 1
    alpha_bar = process.alphas_bar[last]
    eps = net(x, x.new_full((len(x),), last, dtype=torch.long))
    return (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(PROCESSES, "decay", Kind(Decay, ("linear_first",)))
    monkeypatch.setitem(
        SAMPLERS, "once", Sampler(one_call, lambda process, steps: [process.diffusion_steps - 1], ("steps",), False)
    )


IMAGE = torch.linspace(-0.9, 0.9, 16, dtype=torch.float64).view(1, 1, 4, 4)


@pytest.mark.parametrize("sampler", ["gddim", "euler"])
def test_an_own_process_trains_and_samples(own, sampler):
    config = DiffusionConfig(process="decay")
    process = make_process(config, 4)
    assert network_channels(config, 1) == 1 and not config.whole_steps

    def perfect(x, t):  # knows the image, and is told times of 0 to 999
        alpha_bar = torch.exp(-8 * t / 999).view(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * IMAGE) / (1 - alpha_bar).sqrt()

    t, noise = process.draw_times(5), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    assert process.loss(perfect, config, IMAGE.expand(5, -1, -1, -1), t, noise, "mse").max() < 1e-20
    sample = SampleConfig(sampler, steps=200, order=0 if sampler == "gddim" else 2)
    check_sampling(config, 4, sample)
    made = run_sampler(perfect, config, 4, sample, lambda: torch.randn(1, 1, 4, 4, dtype=torch.float64))
    spread = 4 * math.sqrt(1 - math.exp(-8e-3))  # of t_end, where sampling stops
    torch.testing.assert_close(made, IMAGE, rtol=0, atol=spread)


def test_an_own_process_is_refused_what_it_does_not_take(own):
    assert DiffusionConfig(process="decay", linear_first=True).linear_first
    with pytest.raises(UserError, match="--process=decay: has its own schedule"):
        DiffusionConfig(process="decay", mean_type="v")
    with pytest.raises(UserError, match="only --process=cld has one"):
        DiffusionConfig(process="decay", factor="L")
    with pytest.raises(
        UserError, match="--sampler=once: samples --process=vp only; --process=decay needs gddim or eul"
    ):
        check_sampling(DiffusionConfig(process="decay"), 4, SampleConfig("once"))


def test_an_own_sampler_samples_a_network(own):
    net = ann2snn.build_unet(ch=32, ch_mult=(1,), num_res_blocks=1, image_size=8, bit=2)
    images = ann2snn.sample(net, 2, sampler="once", steps=1, clip=False, progress=False)
    assert images.shape == (2, 3, 8, 8) and SampleConfig("once", 1).calls(net.diffusion) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_line_of_the_samplers_names_functions(name):
    assert isinstance(SAMPLERS[name].function, Code)
    assert callable(SAMPLERS[name].function.loaded()) and callable(SAMPLERS[name].times.loaded())


@pytest.mark.parametrize("name", PROCESSES)
def test_every_line_of_the_processes_names_a_class(name):
    kind = PROCESSES[name]
    assert issubclass(kind.cls, VP if kind.whole_steps else LinearProcess)


@pytest.mark.parametrize("corrector", ["none", "pec", "pece"])
def test_times_of_gddim_are_those_of_its_calls(corrector):
    process, seen = make_process(DiffusionConfig(process="cld"), 4), []
    net = lambda x, t: seen.append(float(t[0])) or torch.zeros_like(x)  # noqa: E731
    options = {"steps": 6, "order": 1, "corrector": corrector, "denoise": True}
    SAMPLERS["gddim"](net, process, torch.ones(1, 2, 4, 4), noise=Draws((1, 2, 4, 4)), clip=True, **options)
    assert seen == pytest.approx(list(SAMPLERS["gddim"].times(process, **options)), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "heun", "eta": 0.5}, "--eta=0.5: --sampler=heun has none; only ddim, gddim and euler have one"),
        ({"sampler": "ddim", "order": 3}, "--sampler_order=3: --sampler=ddim has none"),
        ({"sampler": "ddim", "grid_power": 3.0}, "--grid_power=3.0: --sampler=ddim has none; only gddim and euler"),
        ({"sampler": "pndm", "order": 3}, "--sampler_order=3: --sampler=pndm has none"),
        ({"sampler": "pndm", "skip": "quadratic"}, "--skip_type=quadratic: --sampler=pndm has none"),
        ({"sampler": "ddpm", "skip": "quadratic"}, "--skip_type=quadratic: --sampler=ddpm has none"),
        (
            {"sampler": "ddpm", "steps": 20},
            "--sampler_steps=20: --sampler=ddpm visits every diffusion step; give another",
        ),
    ],
)
@pytest.mark.parametrize("call", [ann2snn.sample, ann2snn.trajectory, ann2snn.interpolate])
def test_settings_that_the_sampler_would_pass_over_are_refused(call, options, words):
    net = ann2snn.build_unet(ch=32, ch_mult=(1,), num_res_blocks=1, image_size=8, bit=2)
    arguments = (1, 2, 3) if call is ann2snn.interpolate else (1,)
    with pytest.raises(UserError, match=words):
        call(net, *arguments, **options)
