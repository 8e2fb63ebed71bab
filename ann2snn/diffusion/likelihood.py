"""The variational bound of DDPM (Ho et al., 2020, eq. 5) in bits per dimension: L_T + Σ_t L_{t−1} + L_0.

Images hold 256 levels in [−1, 1], 2/255 apart; a dimension is one number of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LEARNED
from .learned_range import learned_log_var, prediction
from .predict import predicted_x0
from .vp import VP, gather

Denoiser = Callable[[Tensor, Tensor], Tensor]
HALF_BIN = 1 / 255


def normal_kl(mean: Tensor, log_var: Tensor, other_mean: Tensor, other_log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(other_mean, e^other_log_var)) per element, in nats."""
    gap = other_log_var - log_var
    return 0.5 * (gap - 1 + torch.exp(-gap) + (mean - other_mean) ** 2 * torch.exp(-other_log_var))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log ∫ N(z; mean, e^log_var) dz over the bin of x, per element, in nats (Ho et al., eq. 13).

    x holds levels of [−1, 1]; the outermost bins reach to ±∞, so that the 256 probabilities sum to 1. The original
    code approximates the normal distribution function by a tanh; this is exact, and finite however far off the mean.
    """
    scale = torch.exp(-0.5 * log_var)
    low, high = (x - HALF_BIN - mean) * scale, (x + HALF_BIN - mean) * scale
    low = torch.where(x < -0.999, -torch.inf, low)
    high = torch.where(x > 0.999, torch.inf, high)
    # The distribution is symmetric; on the falling side the difference would be one of two numbers next to 1.
    low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    below = (log_low - log_high).clamp(max=-torch.finfo(x.dtype).tiny)
    return log_high + torch.log(-torch.expm1(below))


def model_mean(process: VP, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of the network's reverse step p(x_{t−1} | x_t), without limits on the predicted x_0."""
    if process.config.mean_type == "xprev":
        return prediction(output, x_t)
    return process.posterior_mean(predicted_x0(process, output, x_t, t), x_t, t)


def model_log_var(process: VP, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """log σ² of the network's reverse step, like x_t: what `var_type` fixes, or what the network tells."""
    if process.config.var_type != LEARNED:
        return gather(process.model_log_var(), t, x_t).expand_as(x_t)
    small, large = (gather(table, t, x_t) for table in (process.posterior_log_var, process.log_betas))
    return learned_log_var(output, x_t, small, large)


def bound_term(net: Denoiser, process: VP, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_{t−1}, for t = 0 L_0, of one noisy image each, in bits per dimension [N]; the variance is `var_type`'s.

    x_0 [N, C, H, W] on the 256 levels; integer t [N]; noise ~ N(0, I).
    """
    x_t = process.diffuse(x_0, t, noise)
    return bound_of(process, net(x_t, t), x_0, x_t, t)


def bound_of(process: VP, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """`bound_term` of the network's output at x_t."""
    mean, log_var = model_mean(process, output, x_t, t), model_log_var(process, output, x_t, t)
    true_log_var = gather(process.posterior_log_var, t, x_t)
    nats = normal_kl(process.posterior_mean(x_0, x_t, t), true_log_var, mean, log_var)
    first = t == 0
    if first.any():
        likelihood = discretized_log_likelihood(x_0[first], mean[first], log_var[first])
        nats = nats.index_put((first.nonzero().squeeze(1),), -likelihood)
    return _bits(nats)


def prior_term(process: VP, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)) in bits per dimension [N]."""
    last = process.alphas_bar[-1]
    zero = torch.zeros((), dtype=torch.float64)
    return _bits(normal_kl(torch.sqrt(last) * x_0.double(), torch.log1p(-last), zero, zero))


@dataclass(frozen=True)
class Bound:
    """The bound on −log2 p(x_0) per dimension, float64.

    prior [N]: L_T. terms [N, diffusion_steps]: L_0, L_1, …, by the t that the network saw. total [N]: their sum.
    """

    prior: Tensor
    terms: Tensor
    total: Tensor


@torch.no_grad()
def variational_bound(net: Denoiser, process: VP, x_0: Tensor, noise: Callable[[], Tensor]) -> Bound:
    """Every term of the bound for x_0 [N, C, H, W] on the 256 levels: one draw of `noise` and one call per time."""
    terms = []
    for step in range(process.diffusion_steps):
        t = torch.full((len(x_0),), step, dtype=torch.long, device=x_0.device)
        terms.append(bound_term(net, process, x_0, t, noise()).double())
    prior, stacked = prior_term(process, x_0), torch.stack(terms, dim=1)
    return Bound(prior, stacked, prior + stacked.sum(dim=1))


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(dim=1) / math.log(2)
