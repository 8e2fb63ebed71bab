"""Training losses."""

from __future__ import annotations

from torch import Tensor

from .predict import training_target
from .vp import VP


def squared_error(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_simple of DDPM (Ho et al., 2020, eq. 14), per element [N, C, H, W]; the target follows `mean_type`.

    x_0 [N, C, H, W] in [−1, 1]; integer t [N]; noise ~ N(0, I).
    """
    x_t = process.diffuse(x_0, t, noise)
    return (net(x_t, t) - training_target(process, x_0, x_t, t, noise)) ** 2
