"""Blur diffusion against scipy's transform, published values and its own differential equation."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from ann2snn.diffusion.blur import BDM, BDMConfig
from ann2snn.diffusion.continuous_loss import noise_error, training_times
from ann2snn.diffusion.gddim import sample_gddim
from ann2snn.diffusion.gddim_coefficients import gddim_coefficients, time_grid
from ann2snn.errors import UserError

PROCESS = BDM()
SMALL = BDM(BDMConfig(image_size=6, sigma_blur_max=3.0))


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def knows(process: BDM, x_0: torch.Tensor):
    """A network that knows the image, and reads the noise off the frequencies."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = float(t[0])
        clean = torch.as_tensor(process.gain(time)) * process.dct(x_0)
        return process.idct(process.dct(x) - clean) / math.sqrt(1 - process.alpha(time))

    return net


def test_transform_is_scipys_orthonormal_dct_and_keeps_energy():
    x = draws(2, 3, 32, 32)
    y = PROCESS.dct(x)
    np.testing.assert_allclose(y, dctn(x.numpy(), axes=(2, 3), norm="ortho"), atol=1e-12)
    torch.testing.assert_close(PROCESS.idct(y), x)
    assert float((y**2).sum()) == pytest.approx(float((x**2).sum()), rel=1e-12)


def test_schedule_values():
    assert PROCESS.alpha(0.0) == pytest.approx(0.99996115, abs=1e-8)
    assert PROCESS.alpha(1.0) == pytest.approx(3.885e-5, rel=1e-4)
    assert [PROCESS.alpha(t) for t in (0.1, 0.25, 0.5)] == pytest.approx([0.973964, 0.851343, 0.5], abs=1e-6)
    assert PROCESS.blur_sigma(0.1) == pytest.approx(0.24472, abs=1e-5)
    expected = {
        (0.1, 8, 8): 0.963769,
        (0.1, 31, 31): 0.574674,
        (0.25, 0, 1): 0.989728,
        (0.25, 8, 8): 0.267086,
        (0.5, 0, 1): 0.886610,
        (0.5, 1, 1): 0.786089,
        (0.5, 8, 8): 0.001,
    }
    for (t, i, j), value in expected.items():
        assert PROCESS.blur(t)[i, j] == pytest.approx(value, abs=1e-6), (t, i, j)


def test_sampling_starts_where_the_noise_ratio_is_eighty_above_its_start():
    assert PROCESS.t_start == pytest.approx(0.9959798, abs=1e-7)
    assert PROCESS.alpha(PROCESS.t_start) == pytest.approx(1.56195e-4, rel=1e-5)


def test_drift_and_diffusion_are_those_of_the_kernel():
    h = 1e-6
    for t in (0.05, 0.3, 0.6, 0.95):
        gain = (np.log(SMALL.gain(t + h)) - np.log(SMALL.gain(t - h))) / (2 * h)
        np.testing.assert_allclose(SMALL.drift(t)[..., 0, 0], gain, rtol=1e-6, atol=1e-7)
        slope = (SMALL.covariance(t + h) - SMALL.covariance(t - h)) / (2 * h)
        rate = 2 * SMALL.drift(t) * SMALL.covariance(t) + SMALL.diffusion(t)
        np.testing.assert_allclose(slope, rate, rtol=1e-6)
        assert (SMALL.diffusion(t) >= 0).all()


def test_diffuse_blurs_the_image_and_adds_white_noise():
    x_0, noise = draws(2, 1, 6, 6), draws(2, 1, 6, 6, seed=1)
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    x = SMALL.diffuse(x_0, t, noise)
    for i, time in enumerate(t.tolist()):
        frequencies = SMALL.dct(x[i : i + 1])[0, 0]
        expected = torch.as_tensor(SMALL.gain(time)) * SMALL.dct(x_0[i : i + 1])[0, 0]
        expected = expected + math.sqrt(1 - SMALL.alpha(time)) * SMALL.dct(noise[i : i + 1])[0, 0]
        torch.testing.assert_close(frequencies, expected)


def test_a_silent_network_has_loss_one():
    t = training_times(SMALL, torch.rand(400, dtype=torch.float64))
    error = noise_error(lambda x, _: torch.zeros_like(x), SMALL, draws(400, 3, 6, 6), t, draws(400, 3, 6, 6, seed=1))
    assert float(error.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_exact_predictions_recover_the_image_in_any_number_of_steps(steps):
    x_0 = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    state = PROCESS.prior(draws(1, 3, 32, 32))
    x = sample_gddim(knows(PROCESS, x_0), PROCESS, state, steps=steps, order=0)
    residual = math.sqrt(1 - PROCESS.alpha(1e-5))
    assert float((x - x_0).pow(2).mean().sqrt()) == pytest.approx(6.4e-3, rel=0.06)
    assert float((x - x_0).pow(2).mean().sqrt()) == pytest.approx(residual, rel=0.05)


def test_without_blur_it_is_ddim():
    plain = BDM(BDMConfig(image_size=6, min_blur=1.0))
    state, grid = draws(2, 3, 6, 6), time_grid(plain, 4)
    x = sample_gddim(lambda x, t: torch.tanh(x), plain, state, grid=grid, order=0)
    y = plain.idct(state)
    for now, target in zip(grid, grid[1:], strict=False):
        a, b, eps = float(plain.alpha(now)), float(plain.alpha(target)), torch.tanh(y)
        y = math.sqrt(b) * (y - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b) * eps
    torch.testing.assert_close(x, y)


def test_coefficients_of_higher_degree_add_up_to_those_of_degree_zero():
    grid = time_grid(SMALL, 6)
    straight, curved = gddim_coefficients(SMALL, grid, 0), gddim_coefficients(SMALL, grid, 3)
    for one, many in zip(straight.predictor, curved.predictor, strict=True):
        np.testing.assert_allclose(sum(many), one[0], rtol=1e-9, atol=1e-9)


def test_higher_degrees_converge_faster_on_gaussian_images():
    """White Gaussian images: every frequency's exact prediction is linear and its flow a known factor."""
    variance = 0.2

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = float(t[0])
        total = SMALL.gain(time) ** 2 * variance + 1 - SMALL.alpha(time)
        return SMALL.idct(torch.as_tensor(math.sqrt(1 - SMALL.alpha(time)) / total) * SMALL.dct(x))

    def spread(time: float) -> np.ndarray:
        return np.sqrt(SMALL.gain(time) ** 2 * variance + 1 - SMALL.alpha(time))

    start = torch.ones(1, 1, 6, 6, dtype=torch.float64)
    exact = torch.as_tensor(spread(SMALL.t_end) / spread(SMALL.t_start))
    errors = {}
    for order in range(3):
        for steps in (100, 200):
            y = SMALL.dct(sample_gddim(net, SMALL, start, steps=steps, order=order))
            errors[order, steps] = float((y[0, 0] - exact).abs().max())
    for order in range(3):
        assert math.log2(errors[order, 100] / errors[order, 200]) > order + 0.7, errors
    assert errors[0, 200] > 3 * errors[1, 200] > 9 * errors[2, 200]


@pytest.mark.parametrize("shape", [(1, 3, 32, 16), (1, 3, 16, 16), (4, 2)])
def test_only_images_of_the_set_size_are_taken(shape):
    with pytest.raises(UserError, match="images of 32x32"):
        PROCESS.prior(torch.zeros(shape))
    with pytest.raises(UserError, match="images of 32x32"):
        sample_gddim(None, PROCESS, torch.zeros(shape), steps=3, order=0)


def test_it_has_no_final_denoising():
    with pytest.raises(UserError, match="no final denoising"):
        sample_gddim(None, PROCESS, torch.zeros(1, 3, 32, 32), steps=3, order=0, denoise=True)


@pytest.mark.parametrize(
    "bad",
    [{"sigma_blur_max": -1.0}, {"min_blur": 0.0}, {"offset": 0.5}, {"t_end": 0.0}, {"t_min": 1.0}, {"image_size": 0}],
    ids=str,
)
def test_bad_constants_are_refused_by_name(bad):
    with pytest.raises(UserError, match=next(iter(bad)).replace("image_size", "img_size")):
        BDMConfig(**bad)
