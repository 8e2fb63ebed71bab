"""What the DPM-Solvers share: states x = α·x_0 + σ·ε, with α² = ᾱ, σ² = 1−ᾱ and the time λ = log(α/σ)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...config import check_int, require
from ..predict import check_real_times
from ..vp import VP


@dataclass(frozen=True)
class Node:
    """A real diffusion time and its α, σ, λ."""

    time: float
    alpha: float
    sigma: float
    lam: float


def node(process: VP, time: float) -> Node:
    """The node at `time`, a real number from 0 to diffusion_steps − 1."""
    log_alpha_bar = float(process.log_snr.log_alpha_bar(time))
    alpha, sigma = math.exp(log_alpha_bar / 2), math.sqrt(-math.expm1(log_alpha_bar))
    return Node(time, alpha, sigma, math.log(alpha / sigma))


def ddim_step(x: Tensor, eps: Tensor, start: Node, end: Node) -> Tensor:
    """α_t/α_s·x − σ_t·(e^h − 1)·ε with h = λ_t − λ_s: the flow's solution for constant ε (DPM-Solver, eq. 3.7)."""
    return end.alpha / start.alpha * x - end.sigma * math.expm1(end.lam - start.lam) * eps


def check_solver(process: VP, steps: int, order: int, largest: int) -> None:
    """Raise UserError for an order that does not exist or needs more calls, or a process unknown between its steps."""
    order, steps = check_int(order, "--sampler_order"), check_int(steps, "--sampler_steps")
    require(1 <= order <= largest, f"--sampler_order={order}: this sampler has orders 1 to {largest}")
    # The last call turns the state at t = 0 into the image; `order` others make a step of that order.
    require(
        steps > order or order == 1,
        f"--sampler_order={order}: needs at least {order + 1} network calls, --sampler_steps={steps}",
    )
    check_real_times(process)
