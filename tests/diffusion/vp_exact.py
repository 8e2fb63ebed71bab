"""Processes, noise sources and exact denoisers that the tests of VP samplers share."""

import math

import torch

from ann2snn.config import DiffusionConfig
from ann2snn.diffusion import VP
from ann2snn.diffusion.predict import eps_from_x0, training_target

SCALE = 1e-3  # of inputs to linear samplers, so that the limits of the final image are far away


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def process(steps: int = 1000, **options) -> VP:
    return VP(DiffusionConfig(diffusion_steps=steps, **options))


def no_noise() -> torch.Tensor:
    raise AssertionError("noise was drawn")


class Draws:
    """Noise source that replays the draws of one seed and counts them."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.shape, self.generator, self.count = shape, torch.Generator().manual_seed(seed), 0

    def __call__(self) -> torch.Tensor:
        self.count += 1
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


def gaussian_denoiser(vp: VP, std: float):
    """The exact noise prediction E[ε | x_t] when every pixel of the data is N(0, std²), at integer or real t."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = vp.alpha_bar_at(t).view(-1, 1, 1, 1)
        return torch.sqrt(1 - alpha) / (alpha * std**2 + 1 - alpha) * x

    return net


def oracle(vp: VP, x_0: torch.Tensor):
    """A network that knows the image: its output is what x_0 implies at x_t, in the process's own terms."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return training_target(vp, x_0.expand_as(x), x, t, eps_from_x0(vp, x_0.expand_as(x), x, t))

    return net


def in_terms_of(vp: VP, net):
    """A noise-predicting network as one that predicts what `vp` is set to."""

    def translated(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        eps, alpha = net(x, t), vp.alpha_bar_at(t).view(-1, 1, 1, 1)
        return training_target(vp, (x - torch.sqrt(1 - alpha) * eps) / torch.sqrt(alpha), x, t, eps)

    return translated


def response(sampler, vp: VP, net, draws: int, **options) -> torch.Tensor:
    """What a linear sampler makes of x_T and of each of `draws` noises: its output is row·(x_T, z_1, …, z_draws)."""
    x_T, count = torch.zeros(draws + 1, 1, 1, 1, dtype=torch.float64), 0
    x_T[0] = SCALE

    def noise() -> torch.Tensor:
        nonlocal count
        count += 1
        z = torch.zeros_like(x_T)
        z[count] = SCALE
        return z

    row = sampler(net, vp, x_T, noise=noise, clip=False, **options).flatten() / SCALE
    assert count == draws
    return row


def flow_gain(vp: VP, std: float) -> float:
    """x_0 that the network predicts at the end of the probability flow from x_T = 1, for N(0, std²) data."""
    first, last = float(vp.alphas_bar[0]), float(vp.alphas_bar[-1])
    var = lambda alpha: alpha * std**2 + 1 - alpha  # noqa: E731
    return math.sqrt(var(first) / var(last)) * math.sqrt(first) * std**2 / var(first)
