"""Freeze the statistics of a spiking network's norms: what `stream_norm=frozen` runs on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..config import check_int, require
from ..errors import UserError
from ..nets import UNet
from ..neurons import SpikingGroupNorm
from ..neurons.norm import time_bin
from .spiking import SpikingDenoiser


@torch.no_grad()
def freeze_norms(ann: UNet, snn: SpikingDenoiser, x: Tensor, t: Tensor, bins: int = 10, batch_size: int = 32) -> None:
    """Give every norm of `snn` the statistics its counterpart in the quantized `ann` sees on x [N, C, H, W], t [N].

    bins: bins of equal width over the diffusion steps, each with statistics of its own; a bin without an image takes
    those of the nearest bin that has some. x: noised images at t, or states of a sampler's path; of the network's
    dtype. Statistics are pooled in float64. Raises UserError for bad `bins`, an empty batch or another architecture.
    """
    steps = ann.config.diffusion_steps
    bins = check_bins(bins, steps)
    require(len(x) > 0 and t.shape == x.shape[:1], f"{len(x)} images and times {list(t.shape)}: give one time an image")
    norms = {name: module for name, module in snn.unet.named_modules() if isinstance(module, SpikingGroupNorm)}
    which = time_bin(t.cpu(), bins, steps)
    for name, (mean, var) in norm_inputs(ann, list(norms), x, t, batch_size).items():
        norm = norms[name]
        require(mean.shape[1] == norm.num_groups, f"{name} has {mean.shape[1]} groups in the ANN: not its network")
        try:
            norm.freeze(*pool(mean, var, which, bins))
        except UserError as error:
            raise UserError(f"cannot freeze {name}: {error}") from None


def check_bins(bins: int, diffusion_steps: int) -> int:
    """Return `bins` as an integer if it is 1 to `diffusion_steps`. Raises UserError."""
    bins = check_int(bins, "--norm_bins")
    require(1 <= bins <= diffusion_steps, f"--norm_bins={bins}: use 1 to {diffusion_steps}, the diffusion steps")
    return bins


def norm_inputs(ann: UNet, names: list[str], x: Tensor, t: Tensor, batch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """{norm: (mean, biased variance)} of its input, per image and group, each float64 [N, groups] on the CPU.

    Only these few numbers of each image are kept, so memory is that of one batch.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def look(module: nn.GroupNorm, args: tuple[Tensor], name: str) -> None:
        groups = args[0].double().unflatten(1, (module.num_groups, -1)).flatten(2)  # [N, groups, values]
        var, mean = torch.var_mean(groups, dim=2, correction=0)
        seen[name].append(torch.stack([mean, var]).cpu())

    modules = dict(ann.named_modules())
    for name in names:
        require(isinstance(modules.get(name), nn.GroupNorm), f"the ANN has no norm {name}: not the network's own")
    training = ann.training
    handles = [modules[name].register_forward_pre_hook(partial(look, name=name)) for name in names]
    try:
        ann.eval()
        for start in range(0, len(x), batch_size):
            ann(x[start : start + batch_size], t[start : start + batch_size])
    finally:
        ann.train(training)
        for handle in handles:
            handle.remove()
    return {name: tuple(torch.cat(parts, dim=1)) for name, parts in seen.items()}


def pool(mean: Tensor, var: Tensor, which: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Statistics per image [N, groups] and its bin [N] → those of each bin, mean and variance [bins, groups].

    An empty bin takes the statistics of the nearest one that is not, of two at the same distance the earlier.
    """
    # The mean of the images' own variances, not the variance of all their values: GroupNorm leaves no variance
    # between images, so a divisor that counted it would shrink every current. With it the output varies within an
    # image, averaged over images, by exactly as much as GroupNorm's. (Least squares would shrink currents as well.)
    filled = which.unique().tolist()
    pooled = {index: (mean[which == index].mean(0), var[which == index].mean(0)) for index in filled}
    nearest = [min(filled, key=lambda index, own=own: (abs(index - own), index)) for own in range(bins)]
    return tuple(torch.stack([pooled[index][i] for index in nearest]) for i in range(2))
