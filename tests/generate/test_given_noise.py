"""Own noise, and images between two seeds."""

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

import ann2snn
from ann2snn import UserError
from ann2snn.config import ImageSize
from ann2snn.diffusion import ImageNoise
from ann2snn.generate.noise import slerp
from ann2snn.generate.sampling import Given, SampleConfig, generate, group_size
from tests.diffusion.vp_exact import normal
from tests.generate.denoisers import gaussian
from tests.helpers import assert_equal, random_ann

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def ann():
    return random_ann(image_size=8).float()


def drawn(seed: int, n: int) -> torch.Tensor:
    return ImageNoise(seed, range(n), SHAPE, "cpu")()


@pytest.mark.parametrize(
    "how",
    [
        {"sampler": "ddim", "steps": 4},
        {"sampler": "ddpm"},
        {"sampler": "dpmpp", "steps": 4},
        {"sampler": "gddim", "steps": 4, "order": 1},
    ],
    ids=lambda how: how["sampler"],
)
def test_a_seed_s_own_noise_gives_its_images(ann, how):
    plain = ann2snn.sample(ann, 3, seed=7, progress=False, **how)
    assert_equal(ann2snn.sample(ann, 3, seed=7, x_T=drawn(7, 3), progress=False, **how), plain)
    other = ann2snn.sample(ann, 3, seed=7, x_T=drawn(8, 3), progress=False, **how)
    assert not torch.equal(other, plain)


def test_given_noise_makes_the_same_bytes_in_any_batch_and_in_the_spiking_network(ann):
    count = group_size(ImageSize(8, 8)) + 2
    x_T, config = drawn(1, count), SampleConfig("ddim", steps=3, carry=True)
    snn = ann2snn.convert(ann)
    alone = [generate(snn, config, [i], Given(x_T=x_T))[0] for i in (0, 3, count - 1)]
    whole = ann2snn.sample(ann, count, steps=3, x_T=x_T, batch_size=5, progress=False)
    assert_equal(torch.stack(alone), whole[[0, 3, count - 1]])


@pytest.mark.parametrize(
    "x_T",
    [torch.zeros(2, 3, 8, 4), torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64), np.zeros(2)]
    + [torch.full((2, 3, 8, 8), float("nan"))],
)
def test_noise_that_does_not_fit_is_refused(ann, x_T):
    with pytest.raises(UserError, match="x_T: "):
        ann2snn.sample(ann, 2, steps=2, x_T=x_T, progress=False)


def test_slerp_is_scipy_s_on_the_sphere():
    a, b = normal(1, 3, 4, seed=1), normal(1, 3, 4, seed=2)
    ends = [(x / x.norm()).flatten().numpy() for x in (a, b)]
    expected = torch.from_numpy(geometric_slerp(*ends, np.linspace(0, 1, 7))).view(7, 1, 3, 4)
    torch.testing.assert_close(slerp(a / a.norm(), b / b.norm(), 7), expected, rtol=1e-12, atol=1e-12)
    assert_equal(slerp(a, a, 3), a.expand(3, 1, 3, 4))


@pytest.mark.parametrize("make", [lambda net: net, ann2snn.convert], ids=["ann", "snn"])
def test_a_strip_begins_and_ends_with_the_images_of_its_seeds(ann, make):
    net = make(ann)
    strip = ann2snn.interpolate(net, 3, 5, 4, steps=3)
    ends = [ann2snn.sample(net, 1, steps=3, seed=seed, progress=False)[0] for seed in (3, 5)]
    assert_equal(strip[[0, -1]], torch.stack(ends))
    assert_equal(ann2snn.interpolate(net, 3, 5, 4, steps=3), strip)


def test_a_strip_of_a_linear_network_is_the_strip_of_its_noise():
    net = gaussian(std=0.2)
    gain = ann2snn.sample(net, 1, x_T=torch.ones(1, 1, 4, 4), steps=10, progress=False).double() / 127.5 - 1
    first, last = (ImageNoise(seed, [0], (1, 4, 4), "cpu")()[0] for seed in (1, 2))
    expected = (slerp(first, last, 5) * gain).clamp(-1, 1)
    got = ann2snn.interpolate(net, 1, 2, 5, steps=10, clip=False).double() / 127.5 - 1
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03)  # pixels are rounded


@pytest.mark.parametrize(
    "how", [{"sampler": "ddpm_strided"}, {"eta": 0.5}, {"sampler": "gddim", "eta": 1.0, "order": 0}]
)
def test_strips_of_samplers_that_draw_noise_are_refused(ann, how):
    with pytest.raises(UserError, match="draws noise on the way"):
        ann2snn.interpolate(ann, 0, 1, 2, **{"steps": 3} | how)
