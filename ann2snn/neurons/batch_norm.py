"""Batch norm of spiking networks: one set of statistics over time, batch and space, over all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError


def among_others() -> bool:
    """Whether other processes have parts of the batch, too."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def over_processes(sums: Tensor) -> Tensor:
    """The sums of all processes together; differentiable."""
    if not among_others():
        return sums
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(sums)


class StepBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d on [L·N, C, H, W] with the time steps folded into the batch, output times `gain`.

    gain: α·V_th of the threshold-dependent batch norm (Zheng et al., 2011.05280), applied before weight and bias.

    In training the statistics are those of the whole batch, whatever part of it this process has: sums are exchanged
    where torch.distributed runs. Normalised by the biased variance; the running one is unbiased.

    update: False leaves the running statistics alone, for a pass that repeats another.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    update: bool = True

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__(channels)
        self.gain = gain

    def adopt(self, entries: dict[str, Tensor]) -> None:
        """Look at what a file holds for this layer. Raises UserError for a variance below zero."""
        if "running_var" in entries and bool((entries["running_var"] < 0).any()):
            raise UserError("running_var holds negative variances")

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.gain == 1 else self.weight * self.gain
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, eps=self.eps)
        if among_others():
            return self._over_processes(x, weight)
        if self.update:
            self.num_batches_tracked.add_(1)
        # Momentum 0 instead of no statistics: a pass that repeats another must keep as many tensors for the gradient.
        running, momentum = (self.running_mean, self.running_var), self.momentum if self.update else 0.0
        return F.batch_norm(x, *running, weight, self.bias, training=True, momentum=momentum, eps=self.eps)

    def _over_processes(self, x: Tensor, weight: Tensor) -> Tensor:
        channels = x.shape[1]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # About one process's own mean the squares do not cancel; means differ little between processes.
        near = values.detach().mean((0, 2, 3))
        dist.broadcast(near, src=0)
        centred = values - near.view(1, -1, 1, 1)
        count = centred.new_full((1,), x.numel() / channels)
        sums = over_processes(torch.cat([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean, square = sums[:channels] / total, sums[channels:-1] / total
        var = square - mean.square()
        if self.update:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_((mean + near).to(self.running_mean), self.momentum)
                self.running_var.lerp_((var * total / (total - 1)).to(self.running_var), self.momentum)
        scale = torch.rsqrt(var + self.eps) * weight
        out = (centred - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(x.dtype)
