"""Training losses."""

from __future__ import annotations

from torch import Tensor

from ..config import LOSS_TYPES, require
from .likelihood import bound_term
from .predict import training_target
from .vp import VP


def squared_error(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_simple of DDPM (Ho et al., 2020, eq. 14), per element [N, C, H, W]; the target follows `mean_type`.

    x_0 [N, C, H, W] in [−1, 1]; integer t [N]; noise ~ N(0, I).
    """
    x_t = process.diffuse(x_0, t, noise)
    return (net(x_t, t) - training_target(process, x_0, x_t, t, noise)) ** 2


def training_loss(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor, loss_type: str = "mse") -> Tensor:
    """Loss of each image [N]: "mse" is the mean of `squared_error`, "kl" a term of the bound in bits per dimension.

    Arguments as in `squared_error`. Raises UserError for another loss type.
    """
    require(loss_type in LOSS_TYPES, f"--loss_type={loss_type}: use one of {', '.join(LOSS_TYPES)}")
    if loss_type == "kl":
        return bound_term(net, process, x_0, t, noise)
    return squared_error(net, process, x_0, t, noise).flatten(1).mean(dim=1)
