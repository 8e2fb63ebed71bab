"""Training losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import LEARNED, LOSS_TYPES, require
from .learned_range import prediction
from .likelihood import bound_of, bound_term
from .predict import training_target
from .vp import VP

BOUND_WEIGHT = 0.001  # λ of the paper


def squared_error(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_simple of DDPM (Ho et al., 2020, eq. 14), per element [N, C, H, W]; the target follows `mean_type`.

    x_0 [N, C, H, W] in [−1, 1]; integer t [N]; noise ~ N(0, I).
    """
    x_t = process.diffuse(x_0, t, noise)
    return (prediction(net(x_t, t), x_t) - training_target(process, x_0, x_t, t, noise)) ** 2


def hybrid_loss(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_simple + 0.001·L_vlb of each image [N] (Nichol and Dhariwal, 2021, eq. 16); arguments as in `squared_error`.

    The bound is estimated by its term at t, in bits per dimension, times the number of terms. It teaches the variance
    alone: no gradient goes from it to the mean. x_0 on the 256 levels.
    """
    x_t = process.diffuse(x_0, t, noise)
    output = net(x_t, t)
    predicted = prediction(output, x_t)
    simple = (predicted - training_target(process, x_0, x_t, t, noise)) ** 2
    of_variance = torch.cat([predicted.detach(), output[:, x_t.shape[1] :]], dim=1)
    bound = process.diffusion_steps * bound_of(process, of_variance, x_0, x_t, t)
    return simple.flatten(1).mean(dim=1) + BOUND_WEIGHT * bound


def training_loss(net, process: VP, x_0: Tensor, t: Tensor, noise: Tensor, loss_type: str = "mse") -> Tensor:
    """Loss of each image [N]: "mse" is the mean of `squared_error`, "kl" a term of the bound in bits per dimension.

    Where the network tells its variance, "mse" is `hybrid_loss`, and "kl" teaches the mean and the variance.
    Arguments as in `squared_error`. Raises UserError for another loss type.
    """
    require(loss_type in LOSS_TYPES, f"--loss_type={loss_type}: use one of {', '.join(LOSS_TYPES)}")
    if loss_type == "kl":
        return bound_term(net, process, x_0, t, noise)
    if process.config.var_type == LEARNED:
        return hybrid_loss(net, process, x_0, t, noise)
    return squared_error(net, process, x_0, t, noise).flatten(1).mean(dim=1)
