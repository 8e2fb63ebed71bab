"""Training of the small denoiser, and its file."""

from __future__ import annotations

import copy
import math
import os

import torch
from torch import nn

from ..checkpoints import checkpoint
from ..config import require
from ..diffusion.ema import ema_decay_at
from ..diffusion.process import make_process
from ..distributed.runtime import seed_from
from ..nets.mlp import MLP
from .sets import draw
from .settings import IMAGE_SIZE, ToySettings

POOL = 100_000  # elements that batches are drawn from
EMA_DECAY = 0.998
KIND = "toy"


def build(settings: ToySettings) -> nn.Module:
    """The network with the weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(settings.seed, 0))
        return MLP(math.prod(settings.state_shape), settings.width, settings.layers, settings.waves)


def train(settings: ToySettings, progress=lambda step, loss: None) -> tuple[nn.Module, float]:
    """The averaged network, and the mean loss of the last tenth of the steps.

    Adam, learning rate falling to 0 along a cosine. Preconditioned, the loss of every time has the same weight.
    Raises UserError if the loss ceases to be a number.
    """
    process, config = make_process(settings.diffusion, IMAGE_SIZE), settings.diffusion
    data = draw(settings.points, POOL, seed_from(settings.seed, 1)) / settings.scale
    net = build(settings)
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.train_steps)
    generator = torch.Generator().manual_seed(seed_from(settings.seed, 2))
    losses = []
    for step in range(settings.train_steps):
        rows = torch.randint(len(data), (settings.batch_size,), generator=generator)
        noise = torch.randn(settings.batch_size, *settings.state_shape, generator=generator)
        t = process.draw_times(settings.batch_size, generator=generator, power=settings.time_power)
        loss = process.loss(net, config, data[rows], t, noise, "mse").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        require(math.isfinite(losses[-1]), f"the loss is {losses[-1]} after {step} steps: use a smaller --lr")
        _follow(average, net, ema_decay_at(step, EMA_DECAY, warmup=True))
        progress(step, losses[-1])
    last = losses[-max(1, len(losses) // 10) :]
    return average.eval(), sum(last) / len(last)


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def save(path: str | os.PathLike, net: nn.Module, settings: ToySettings, loss: float) -> None:
    """Tensors and plain values, atomically. Raises UserError if the disk refuses."""
    content = {"kind": KIND, "format": checkpoint.FORMAT, "ema_model": net.state_dict()}
    checkpoint.save(path, content | {"config": {"toy": settings.to_dict()}, "loss": loss})


def load(path: str | os.PathLike, settings: ToySettings) -> tuple[nn.Module, float]:
    """The network of a file and its last loss. Raises UserError: no toy file, or one trained for something else."""
    content = checkpoint.read(path)
    stored = content.get("config", {}).get("toy")
    require(content.get("kind") == KIND and isinstance(stored, dict), f"{path} is no checkpoint of a toy run")
    fields = settings.to_dict()
    for name in ("process", "points", "T", "beta_1", "beta_T", "width", "layers", "waves", "linear_first"):
        stored_value = stored.get(name)
        value = fields[name]
        require(stored_value == value, f"{path} was trained with --{name}={stored_value}, now --{name}={value}")
    net, loss = build(settings), content.get("loss")
    try:
        net.load_state_dict(content["ema_model"], strict=True)
    except (RuntimeError, TypeError, AttributeError, KeyError):
        require(False, f"{path}: its weights do not fit the network it describes")
    finite = all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())
    require(finite, f"refusing {path}: its weights hold values that are not finite")
    return net.eval(), loss if isinstance(loss, float) else math.nan
