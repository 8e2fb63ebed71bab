"""One training run's state, and one step of it: DDPM loss, Adam, warm-up, gradient clipping, averaged weights."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from ..checkpoints import checkpoint
from ..checkpoints.payload import check_variance
from ..config import FULL_PRECISION, LEARNED, DiffusionConfig, TrainConfig, processes_with, require
from ..data import ImageDataset, to_model_range
from ..diffusion.ema import ema_decay_at
from ..diffusion.loss_weights import check_loss_weight
from ..diffusion.process import make_process
from ..diffusion.synaptic import SynapticLoss
from ..distributed.precision import in_tf32
from ..distributed.runtime import layout_for, place, seed_from, seed_step
from ..distributed.world import World
from ..errors import UserError
from ..generate.classes import classes_of
from ..generate.compiled import compiled
from ..nets.architecture import NetworkConfig, build_network, tells_variance
from ..nets.direct import DirectDenoiser
from ..nets.fsddim import FSDDIMConfig
from ..nets.parts import BatchDropout
from ..quant import UniformQuantizer
from ..quant.calibrate import calibrate_activations
from . import by_time
from .norms import begin_statistics, counted, running
from .power import PowerAverages
from .state import (
    FIXED_ON_RESUME,
    FRESH,
    SAME,
    UNTOLD,
    Initial,
    load_optimizer,
    load_schedule,
    require_same,
    require_same_origin,
)

CLASS_STREAM = 2  # of a step's random numbers: 0 is times and noise, 1 dropout


class Computing(NamedTuple):
    """How a training's steps are computed. amp: under bfloat16 autocast. tf32: a GPU multiplies float32 in TF32.

    recompute: activations are computed again instead of kept, of networks that can.
    """

    amp: bool = False
    tf32: bool = False
    recompute: bool = False


AS_WRITTEN = Computing()


class Trainer:
    """The state of a training run: raw and averaged network, optimizer, learning-rate schedule, step.

    The processes of `world` hold the same state; each computes its share of a batch.
    """

    def __init__(
        self,
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        train: TrainConfig,
        world: World,
        computing: Computing = AS_WRITTEN,
        dataset: ImageDataset | None = None,
    ) -> None:
        """dataset: what is trained on, which a resumed run must share; not asked about where None."""
        self.dataset = dataset
        # What a run is made of besides its configurations. The data by their fingerprint: a path is no content.
        amp, tf32, recompute = computing
        self.run_settings: dict[str, object] = {"amp": amp, "tf32": tf32}
        self.run_settings |= {} if dataset is None else {"data_dir": dataset.fingerprint_for(*classes_of(network))}
        self.origin: str | None = FRESH  # content of the weights it began with; None: nobody knows
        self.changes: dict[str, tuple[object, object]] = {}  # settings that differ since `restore`, by flag
        self.num_classes = getattr(network, "num_classes", 0)
        self.train_config, self.diffusion, self.world = train, diffusion, world
        self.rows = world.rows(train.batch_size, "--batch_size")
        self.share = self.rows.stop - self.rows.start
        if self.share % train.accumulate:
            raise UserError(
                f"--accumulate={train.accumulate}: must divide the {self.share} images of a process's share of a batch"
            )
        self.device = world.device
        self.process = make_process(diffusion, network.image_size)
        require(
            train.loss_type == "mse" or "loss_type" in diffusion.kind.takes,
            f"--loss_type={train.loss_type}: only for --process={processes_with('loss_type')}; use mse",
        )
        check_loss_weight(diffusion, train.loss_weight)
        check_variance(network, diffusion)
        require(
            diffusion.var_type == LEARNED or not tells_variance(network),
            f"--var_type={diffusion.var_type}: the network tells its variance, and is trained with {LEARNED}",
        )
        self.synaptic = synaptic_loss_of(train, network)
        self.amp, self.tf32 = amp, tf32
        seed_step(train.seed, 0)
        self.net = place(build_network(network, diffusion), self.device)
        if recompute:
            if not isinstance(self.net, DirectDenoiser):
                raise UserError(f"--recompute: not available for --arch={network.arch}")
            self.net.recompute = True
        self.dropouts = [module for module in self.net.modules() if isinstance(module, BatchDropout)]
        learned = [p for p in self.net.parameters() if p.requires_grad]
        # One kernel for all parameters, on a CPU as well (not tested on a GPU yet).
        self.optimizer = torch.optim.Adam(learned, lr=train.lr, fused=True)
        self.scheduler = LambdaLR(self.optimizer, lambda step: lr_factor(step, train))
        self.step = 0
        self.seen: list[tuple[Tensor, Tensor]] = []  # times and losses of the last step's share
        self.consistent = True  # not in the middle of a change of weights
        self.first_bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.power = PowerAverages(self.net, train.power_ema)
        # Averages gradients over processes while they are computed.
        called = compiled(self.net)
        self.parallel: nn.Module = averaging(called) if world.size > 1 else called

    def initialize_activations(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Set every activation's first clip value, from one batch uint8 [N, C, H, W] or to the number asked for."""
        config = self.net.config
        if config.bits == FULL_PRECISION:
            return
        if self.train_config.act_init == "calibrate":
            seed_step(self.train_config.seed, 0)
            x_0 = to_model_range(images).to(self.device)
            t = self.process.draw_times(len(x_0), self.device)
            noise = torch.randn(len(x_0), self.net.in_channels, *x_0.shape[2:], device=self.device)
            pair = self.process.pair(self.diffusion, x_0, t, noise)
            call = pair if labels is None else (*pair, labels.to(self.device))
            begin_statistics(self.net, call)
            calibrate_activations(self.net, [call])
        else:
            clip = float(self.train_config.act_init)
            for name, parameter in self.net.named_parameters():
                if name.endswith("act_alpha"):
                    nn.init.constant_(parameter, clip)
            for module in self.net.modules():
                if isinstance(module, UniformQuantizer):
                    nn.init.constant_(module.scale, clip / module.hi)
        self.world.synchronise(self.net)
        self.begin_averages()

    def begin_with(self, initial: Initial) -> None:
        """Start from these weights, raw and averaged."""
        self.net.load_state_dict(initial.weights())
        self.origin = initial.content
        self.world.synchronise(self.net)
        self.begin_averages()

    def begin_averages(self) -> None:
        """Let all averages be the weights there are."""
        for average in (self.ema, *self.power.nets.values()):
            average.load_state_dict(self.net.state_dict())

    def train_step(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One optimizer step on this process's share of a batch, uint8 [n, C, H, W], and its classes, int64 [n].

        Returns the share's mean loss and the whole batch's gradient norm before clipping, both 0-dim. If it raises, the
        state is that before the step, as long as `consistent` is True.
        """
        running = counted(self.net)
        kept = [statistic.clone() for statistic in running]
        try:
            with in_tf32(self.tf32):
                losses, norm = self.gradients(images, labels)
        except Exception:
            for statistic, before in zip(running, kept, strict=True):
                statistic.copy_(before)
            raise
        self.consistent = False
        self.optimizer.step()
        self.scheduler.step()
        self.update_ema()
        self.step += 1
        self.consistent = True
        # The norm is the same on all processes, so that all agree; kept on the device, so that nothing waits for it.
        bad = ~torch.isfinite(norm) & (self.first_bad == 0)
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        return losses.mean(), norm

    def gradients(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute and clip the gradients of `train_step`. Returns the losses of all parts, and the norm."""
        x_0 = to_model_range(images.to(self.device, non_blocking=True)).to(memory_format=layout_for(self.device))
        t, noise = self.draw(x_0)
        y = None if labels is None else self.kept_back(labels).to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        size = self.share // self.train_config.accumulate
        self.seen = []
        losses = []
        for first in range(0, self.share, size):
            rows = slice(first, first + size)
            losses.append(self.backward(x_0[rows], t[rows], noise[rows], first, None if y is None else y[rows]))
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.train_config.grad_clip)
        return torch.stack(losses), norm

    def draw(self, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """Diffusion times [n] and noise like x_0 of this process's rows, cut out of the whole batch's."""
        seed_step(self.train_config.seed, self.step + 1)  # 0 was the initialization
        total = self.train_config.batch_size
        t = self.process.draw_times(total, self.device)
        noise = torch.randn(total, self.net.in_channels, *x_0.shape[2:], device=self.device)
        return t[self.rows], noise[self.rows].to(memory_format=layout_for(self.device))

    def kept_back(self, labels: Tensor) -> Tensor:
        """Classes [n] of this process's rows, a share of `class_dropout` of them as "no class"; of seed and step."""
        generator = torch.Generator().manual_seed(seed_from(self.train_config.seed, self.step + 1, CLASS_STREAM))
        drawn = torch.rand(self.train_config.batch_size, generator=generator)[self.rows]
        return torch.where(drawn < self.train_config.class_dropout, self.num_classes, labels)

    def backward(self, x_0: Tensor, t: Tensor, noise: Tensor, first: int, y: Tensor | None = None) -> Tensor:
        """Add the gradient of a part of the share, which starts at its row `first`; returns the part's mean loss."""
        parts = self.train_config.accumulate
        for dropout in self.dropouts:
            dropout.part = (self.rows.start + first, self.train_config.batch_size)
        seed_step(self.train_config.seed, self.step + 1, 1)  # the same masks for every part
        last = first + len(x_0) == self.share
        alone: contextlib.AbstractContextManager = contextlib.nullcontext()
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            alone = self.parallel.no_sync()
        with alone:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                kind = self.train_config.loss_type
                net = self.parallel if y is None else lambda x, t: self.parallel(x, t, y)
                losses = self.process.loss(net, self.diffusion, x_0, t, noise, kind, self.synaptic)
            self.seen.append((t, losses.detach()))
            loss = self.weighted(losses, t).mean()
            (loss / parts).backward()
        return loss.detach()

    @property
    def by_time(self) -> Tensor:
        """Of the last step's share, see `by_time.tally`; few steps are asked, so none is tallied before."""
        nothing = torch.zeros(2, by_time.QUARTERS, dtype=torch.float64, device=self.device)
        return sum((by_time.tally(self.process, t, losses) for t, losses in self.seen), start=nothing)

    def weighted(self, losses: Tensor, t: Tensor) -> Tensor:
        """The losses [N] at times t [N], as much as each counts."""
        name = self.train_config.loss_weight
        if name == "none":
            return losses
        return losses * self.process.loss_weights(t, name, self.train_config.min_snr_gamma).to(losses)

    def check_finite(self, logdir: Path) -> None:
        """Raise UserError, naming the first bad step and its batch, if the loss has left the finite numbers."""
        step = int(self.first_bad)
        if step:
            raise UserError(
                f"the loss is not finite at step {step} (the batch of --seed={self.train_config.seed} at step "
                f"{step - 1}, noise seed {seed_from(self.train_config.seed, step, 0)}): lower --lr or --grad_clip and "
                f"run again with --resume_with=lr,grad_clip; the last checkpoint in {logdir} is from before and "
                "continues"
            )

    @torch.no_grad()
    def update_ema(self) -> None:
        """average += (1 − decay)·(net − average), of parameters and batch norm's running statistics; constants stay."""
        usual = ema_decay_at(self.step, self.train_config.ema_decay, self.train_config.ema_warmup)
        for net, decay in ((self.ema, usual), *self.power.decays(self.step)):
            averaged, current = ([*kept.parameters(), *running(kept)] for kept in (net, self.net))
            torch._foreach_lerp_(averaged, current, 1 - decay)

    def payload(self, x_T: Tensor) -> dict:
        """The checkpoint: the reference's keys, and the configuration."""
        return {
            **self.about(),
            "net_model": self.net.state_dict(),
            "ema_model": self.ema.state_dict(),
            "sched": self.scheduler.state_dict(),
            "optim": self.optimizer.state_dict(),
            "x_T": x_T,
            **self.power.payload(),
        }

    def about(self) -> dict:
        """What every file of this training says of its network."""
        kind = "direct" if isinstance(self.net, DirectDenoiser) else "ann"
        return {"kind": kind, "format": checkpoint.FORMAT, "step": self.step, "config": self.config()}

    def config(self) -> dict:
        """All settings that a checkpoint carries, as plain values."""
        return {
            "arch": self.net.config.arch,
            "unet": self.net.config.to_dict(),
            "diffusion": self.diffusion.to_dict(),
            "train": self.train_config.to_dict() | self.run_settings | {"origin": self.origin},
        }

    def restore(self, path: Path, initial: Initial | None = None) -> None:
        """Continue from a checkpoint; `changes` tells what is not as it was. Raises UserError for another run's.

        initial: what it must have begun with; not asked about where None.
        """
        loaded = checkpoint.load(path, weights="net")
        raw = loaded.raw
        for name in ("arch", *(loaded.net.config.to_dict() | self.net.config.to_dict())):
            if name == "dropout":  # which is a setting of the training, too
                continue
            require_same(path, name, getattr(loaded.net.config, name), getattr(self.net.config, name))
        for name in set(DiffusionConfig.__dataclass_fields__) - {"var_type"}:  # a choice of the sampler
            require_same(path, name, getattr(loaded.net.diffusion, name), getattr(self.diffusion, name))
        stored = raw.get("config", {}).get("train", {})
        self.changes = self._changes(stored | {"var_type": loaded.net.diffusion.var_type}, path)
        self.origin = stored.get("origin")
        require_same_origin(path, self.origin, initial)
        self.net.load_state_dict(loaded.net.state_dict())
        self.ema.load_state_dict(checkpoint.load(path, payload=raw, weights="ema").net.state_dict())
        self.power.restore(raw, path)
        load_optimizer(self.optimizer, raw.get("optim"), path)
        load_schedule(self.scheduler, raw.get("sched"), loaded.step, path)
        self.step = loaded.step

    def _changes(self, stored: dict, path: Path) -> dict[str, tuple[object, object]]:
        """{flag: (before, now)}. Raises UserError for a change that was not asked for."""
        current = self.train_config.to_dict() | self.run_settings | {"var_type": self.diffusion.var_type}
        free = {SAME.get(name, name) for name in self.train_config.resume_with}
        if "dataset_type" in free:
            free.add("data_dir")
        fixed: tuple[str, ...] = FIXED_ON_RESUME
        fixed += ("total_steps",) if self.train_config.lr_decay != "none" else ()
        fixed += ("var_type",) if self.train_config.loss_type == "kl" else ()  # whose weights it makes
        fixed += ("accumulate",) if counted(self.net) else ()  # batch norms see a part alone
        changes = {}
        for name in fixed:
            if name in UNTOLD and not (name in stored and name in current):
                continue
            default = None if name in UNTOLD else TrainConfig.__dataclass_fields__[name].default
            before, now = stored.get(name, default), current[name]  # the default of what the file does not know yet
            if self._meaning(name, before) != self._meaning(name, now):
                changes[name] = (before, now)
                if name not in free:
                    require_same(path, name, before, now, f", or allow it with --resume_with={name}")
        return changes

    def _meaning(self, name: str, value: Any) -> object:
        """What a setting comes to, so that two ways to write the same are equal."""
        if name == "flip" and value is None and self.dataset is not None:
            return self.dataset.flip
        if name == "act_init" and value != "calibrate":
            return float(value)
        return value


def synaptic_loss_of(train: TrainConfig, network: NetworkConfig) -> SynapticLoss | None:
    """What --loss_type=scl is made of; None for the others. Raises UserError for a network without currents."""
    if train.loss_type != "scl":
        return None
    if not isinstance(network, FSDDIMConfig):
        raise UserError(
            f"--loss_type=scl: needs synaptic currents, which --arch=fsddim has and --arch={network.arch} has not"
        )
    weights = (train.image_loss_weight, train.spike_loss_weight, train.reconstruction_loss_weight)
    return SynapticLoss(network.spike_steps, *weights)


@torch.no_grad()
def averaging(net: nn.Module) -> DistributedDataParallel:
    """`net` with gradients that are the mean over all processes; buffers are constants and need no exchange."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers"  # the name since torch 2.15
    option: dict[str, Any] = {newer if newer in known else "broadcast_buffers": False}
    return DistributedDataParallel(net, **option)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up (the first step already moves); then constant, half a cosine down to 0, or constant and at last
    linearly to 0 over the last tenth of all steps, so that a run which was planned open-ended can be brought to an end.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.lr_decay == "none":
        return 1.0
    if config.lr_decay == "cooldown":
        return min(1.0, max(0.0, 10 * (1 - step / config.total_steps)))
    share = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
