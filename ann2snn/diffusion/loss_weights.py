"""How much each diffusion time counts in the squared error, for the process "vp"."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import LEARNED, LOSS_WEIGHTS, DiffusionConfig, processes_with, require
from .vp import VP


def check_loss_weight(config: DiffusionConfig, name: str) -> None:
    """Raise UserError where a weight is not defined: it is a function of the signal-to-noise ratio of x_t."""
    require(name in LOSS_WEIGHTS, f"--loss_weight={name}: use one of {', '.join(LOSS_WEIGHTS)}")
    known = processes_with("loss_weight")
    require(
        name == "none" or ("loss_weight" in config.kind.takes and config.mean_type != "xprev"),
        f"--loss_weight={name}: only for --process={known} with --mean_type=epsilon, xstart or v",
    )
    require(
        name == "none" or config.var_type != LEARNED,
        f"--loss_weight={name}: not with --var_type={LEARNED}, whose loss has a second term, at its own weight",
    )


def loss_weights(process: VP, t: Tensor, name: str, gamma: float = 5.0) -> Tensor:
    """The weight of each image's squared error at integer t [N]: float64 [N] on t's device.

    With the signal-to-noise ratio S = ᾱ/(1−ᾱ), an error in ε is S times, one in v S + 1 times that in x_0, squared.
    "min_snr" counts the latter min(S, gamma) times (Hang et al., arXiv 2303.09556, section 3.4): 1 where gamma ≥ S in
    ε. "p2" counts the error in ε 1/(1 + S) times (Choi et al., arXiv 2204.00227, eq. 8 with k = γ = 1).
    """
    alpha_bar = process.alpha_bar_at(t)
    snr = alpha_bar / (1 - alpha_bar)
    mean_type = process.config.mean_type
    if name == "none":
        return torch.ones_like(snr)
    if name == "p2":
        of_eps = 1 / (1 + snr)
        return {"epsilon": of_eps, "xstart": of_eps * snr, "v": of_eps * snr / (1 + snr)}[mean_type]
    of_x_0 = snr.clamp(max=gamma)
    if mean_type == "epsilon":
        return (gamma / snr).clamp(max=1)  # the same, and finite in pure noise
    return of_x_0 if mean_type == "xstart" else of_x_0 / (1 + snr)
