"""The variance of a reverse step, learned as a point between its two bounds (Nichol and Dhariwal, ICML 2021, 3.1).

"Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672. A network of var_type "learned_range" has twice
the channels of its input: first what `mean_type` says, then v, which is −1 for β̃ and 1 for β.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..config import LEARNED, require

NO_VARIANCE = f"--var_type={LEARNED}: the network was not trained to tell its variance; use fixedlarge or fixedsmall"
LEAST_VARIANCE = 1e-20  # a sampler's times may repeat, and then nothing lies between them


def prediction(output: Tensor, x_t: Tensor) -> Tensor:
    """What the network predicts of x_t [N, C, *S]: all of an output [N, C, *S], half of one [N, 2·C, *S].

    Raises UserError for other numbers of channels.
    """
    channels, own = output.shape[1], x_t.shape[1]
    if channels == own:
        return output
    require(channels == 2 * own, f"the network answers {channels} channels to {own}: as many, or twice as many")
    return output[:, :own]


def learned_log_var(output: Tensor, x_t: Tensor, small: Tensor | float, large: Tensor | float) -> Tensor:
    """log σ² [N, C, *S] of eq. 15; small, large: log β̃ and log β. v is not limited, as in the paper.

    Raises UserError for an output [N, C, *S], which has no v.
    """
    own = x_t.shape[1]
    require(output.shape[1] == 2 * own, NO_VARIANCE)
    share = (output[:, own:] + 1) / 2
    return share * large + (1 - share) * small


def log_of(variance: float) -> float:
    """Its logarithm, finite at 0."""
    return math.log(max(variance, LEAST_VARIANCE))
