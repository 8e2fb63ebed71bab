"""The training loop one would write without thinking of speed: fp32, channels first, one small operation a tensor.

Adam without fusing, clipping tensor by tensor, and averaged weights updated in a Python loop over the state dict. It
does what a step of `ann2snn.training.trainer.Trainer` does, from the same draws.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ann2snn.config import DiffusionConfig, TrainConfig
from ann2snn.nets import UNet


class PlainLoop:
    """A network that predicts noise (Ho et al., 2020, algorithm 1), its average, and one step of their training.

    Draws times, then noise, from the global generator.
    """

    def __init__(self, net: UNet, diffusion: DiffusionConfig, train: TrainConfig) -> None:
        self.net, self.train = net, train
        self.ema = copy.deepcopy(net)
        self.device = next(net.parameters()).device
        self.optimizer = torch.optim.Adam(net.parameters(), lr=train.lr, foreach=False, fused=False)
        betas = torch.linspace(diffusion.beta_1, diffusion.beta_T, diffusion.diffusion_steps, dtype=torch.float64)
        alphas_bar = torch.cumprod(1 - betas, dim=0)
        self.signal = alphas_bar.sqrt().float().to(self.device)
        self.noise = (1 - alphas_bar).sqrt().float().to(self.device)

    def step(self, images: Tensor) -> Tensor:
        """One step on uint8 images [N, C, H, W]; the loss, 0-dim."""
        x_0 = images.to(self.device).float() / 127.5 - 1
        t = torch.randint(len(self.signal), (len(x_0),), device=self.device)
        noise = torch.randn_like(x_0)
        x_t = self.signal[t][:, None, None, None] * x_0 + self.noise[t][:, None, None, None] * noise
        loss = ((self.net(x_t, t) - noise) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.train.grad_clip, foreach=False)
        self.optimizer.step()
        self._average()
        return loss.detach()

    def _average(self) -> None:
        decay = self.train.ema_decay
        averaged, current = self.ema.state_dict(), self.net.state_dict()
        for name in averaged:
            averaged[name].copy_(averaged[name] * decay + current[name] * (1 - decay))
