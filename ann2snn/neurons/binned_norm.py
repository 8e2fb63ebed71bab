"""Batch norm with statistics of their own for each part of diffusion time: an affine map that the time chooses.

One network sees images from almost clean to pure noise. Statistics by domain are those of Chang et al.,
"Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", CVPR 2019, with diffusion time for the domain,
and weight and bias in common.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from .batch_norm import StepBatchNorm, over_processes


def bins_of(t: Tensor, bins: int, diffusion_steps: int) -> Tensor:
    """t [N], integer or fractional → int64 [N]: in which of `bins` equal parts of 0 … diffusion_steps each is."""
    starts = torch.arange(1, bins, device=t.device) * diffusion_steps / bins
    return (t.to(torch.float32)[:, None] >= starts).sum(1)  # 0 for NaN, which the answer shows elsewhere


def batch_norm_of_rows(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """`F.batch_norm` in eval mode with statistics [N, C, 1, 1] of each row of x [N, C, H, W].

    One function to whoever follows what a network computes, as batch norm is.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(batch_norm_of_rows, (x,), x, mean, var, weight, bias, eps=eps)
    n, c = x.shape[:2]
    rows = x.reshape(1, n * c, *x.shape[2:])
    scales, shifts = weight.expand(n, c).flatten(), bias.expand(n, c).flatten()
    return F.batch_norm(rows, mean.flatten(), var.flatten(), scales, shifts, eps=eps).view_as(x)


class BinnedBatchNorm(StepBatchNorm):
    """StepBatchNorm with `bins` sets of statistics [bins, C]; called with the bin of every row, int64 [N], as well.

    In training the rows of a bin are a batch of their own: normalised by their mean and biased variance over all
    processes, as they will be by the running ones. (Running ones in training instead would leave nothing that keeps the
    gradient from growing what they normalise.) A row moves the running statistics of its bin as much as it does without
    bins: n of N rows with momentum 1 − (1 − m)^(n·bins/N), which is m where every bin has its share. Bins without rows
    stay as they are, and a bin of one value has no variance to learn.

    momentum: 1, by which statistics begin, lets all bins begin with those of all rows.
    """

    def __init__(self, channels: int, bins: int) -> None:
        super().__init__(channels)
        self.bins = bins
        self.running_mean = torch.zeros(bins, channels)
        self.running_var = torch.ones(bins, channels)

    def forward(self, x: Tensor, bins: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], bins [N] → [N, C, H, W]."""
        if bins is None:
            raise ValueError("a norm with statistics per diffusion time is called with the bins of its rows")
        if self.training:
            return self._normalised(x, bins)
        mean, var = (statistic[bins][..., None, None] for statistic in (self.running_mean, self.running_var))
        return batch_norm_of_rows(x, mean, var, self.weight, self.bias, eps=self.eps)

    def _normalised(self, x: Tensor, bins: Tensor) -> Tensor:
        """By the statistics of the rows of each bin."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # Sums over a mask, since neither autocast nor TF32 rounds them, nor does their order change from run to run.
        own = F.one_hot(bins, self.bins).to(values.dtype).T[..., None]  # [bins, N, 1]
        counted = torch.ones_like(own) if self.momentum == 1 else own
        count = over_processes(counted.sum(1) * x[0, 0].numel())  # [bins, 1]
        some = count.clamp(min=1)
        mean = over_processes((counted * values.sum((2, 3))).sum(1)) / some  # [bins, C]
        centred = values - (own * mean[:, None]).sum(0)[..., None, None]
        var = over_processes((counted * centred.square().sum((2, 3))).sum(1)) / some
        if self.update:
            self._learn(mean.detach(), var.detach(), count)
        scale = torch.rsqrt(var + self.eps) * self.weight
        out = centred * (own * scale[:, None]).sum(0)[..., None, None] + self.bias.view(1, -1, 1, 1)
        return out.to(x.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 - (1 - self.momentum) ** (count * self.bins / count.sum())
        share = torch.where(count > 1, share, 0).to(self.running_mean)
        self.running_mean.lerp_(mean.to(share), share)
        self.running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(share), share)
