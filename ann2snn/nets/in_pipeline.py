"""A network of this program in a pipeline of diffusers, which calls a `UNet2DModel` in another form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LEARNED, check_size, require


class PipelineUNet(nn.Module):
    """`net`, ANN or SNN, with as much of a `UNet2DModel` as `DDPMPipeline` and `DDIMPipeline` ask for.

    Called with sample [N, C, H, W] and a timestep (a number, or [N]), it answers an object with `.sample`, or a tuple.
    class_labels: int64 [N], of a network that knows classes.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def _tells(self) -> bool:
        """Whether the answer has the variance behind the prediction: not where a fixed one has been chosen."""
        return getattr(getattr(self.net, "diffusion", None), "var_type", "") == LEARNED

    @property
    def config(self) -> SimpleNamespace:
        net: Any = self.net
        return SimpleNamespace(
            in_channels=net.in_channels,
            out_channels=getattr(net, "out_channels", net.in_channels) if self._tells else net.in_channels,
            sample_size=check_size(net.image_size).stored,
            class_embed_type=None,
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(value.dtype for value in self.net.parameters() if value.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        net: Any = self.net
        require(
            not self._tells or sample.shape[1] == net.in_channels,
            f"the scheduler took the network's variance for channels of an image: use DDPMScheduler with "
            f'variance_type="{LEARNED}", or set net.diffusion to a fixed var_type',
        )
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        answer = net(sample, t) if class_labels is None else net(sample, t, class_labels)
        answer = answer if self._tells else answer[:, : net.in_channels]
        return SimpleNamespace(sample=answer) if return_dict else (answer,)


def in_pipeline(net: nn.Module) -> PipelineUNet:
    """The network as `DDPMPipeline` and `DDIMPipeline` of diffusers want one: see docs/models.md.

    Raises UserError for a network that does not know its images, and for one on latents, which they would show.
    """
    known = hasattr(net, "in_channels") and hasattr(net, "image_size")
    require(known, f"a {type(net).__name__} does not say which images it denoises: give a network of this program")
    process = getattr(net, "diffusion", None)
    latents = bool(getattr(process, "autoencoder", ""))
    require(not latents, "in_pipeline: the network makes an autoencoder's latents, which these pipelines do not decode")
    return PipelineUNet(net)
