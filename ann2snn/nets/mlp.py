"""A small residual network for points and tiny images, to try processes and samplers in a minute."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import SinusoidalTime

TIME_FEATURES = 64


class MLP(nn.Module):
    """Denoiser x [N, *S] of `features` values each, t [N] → [N, *S].

    Residual layers with LayerNorm; each adds the time code to its hidden values. waves: x also enters as sin(2^k·x)
    and cos(2^k·x), k = 0 … waves − 1, without which fine structure is learned very slowly (Tancik et al., 2020).
    The last layer starts at 0.
    """

    def __init__(self, features: int, width: int = 256, layers: int = 3, waves: int = 0) -> None:
        super().__init__()
        self.waves = waves
        self.time = nn.Sequential(SinusoidalTime(1, TIME_FEATURES), nn.Linear(TIME_FEATURES, width), nn.SiLU())
        self.first = nn.Linear(features * (1 + 2 * waves), width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.last = nn.Linear(width, features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        flat = x.flatten(1)
        angles = [flat * 2**k for k in range(self.waves)]
        inputs = torch.cat([flat, *(wave(angle) for angle in angles for wave in (torch.sin, torch.cos))], dim=1)
        h, code = self.first(inputs), self.time(t)
        for layer in self.layers:
            h = layer(h, code)
        return self.last(F.silu(h)).view_as(x)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(width, width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        """h and the time code, [N, width] each."""
        return h + self.outer(F.silu(self.inner(F.silu(self.norm(h))) + self.time(code)))
