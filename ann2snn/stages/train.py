"""Train a denoiser: DDPM loss, Adam, warm-up, gradient clipping, averaged weights; resumable to the last bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from quant.calibrate import calibrate_activations

from ..config import FULL_PRECISION, DiffusionConfig, SampleConfig, TrainConfig, UNetConfig
from ..data import ImageDataset, batches, to_model_range
from ..diffusion import VP, ImageNoise, squared_error
from ..errors import UserError
from ..io import checkpoint
from ..io.images import save_grid
from ..nets import UNet
from ..report.log import RESULTS, RunLog, append_result
from ..runtime import Interruption, place, seed_step
from ..sampling import generate_all

CHECKPOINT = "ckpt.pt"
#: Settings that a resumed run must share with its beginning, or the result is that of neither.
FIXED_ON_RESUME = (
    "dataset_type",
    "lr",
    "lr_decay",
    "grad_clip",
    "warmup",
    "batch_size",
    "ema_decay",
    "dropout",
    "seed",
)


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps; 0 is never. `score`: denoiser → named figures, for `eval_step`."""

    sample_step: int
    save_step: int
    log_step: int
    sample_size: int
    num_workers: int = 0
    eval_step: int = 0
    score: Callable[[nn.Module], dict[str, float]] | None = None


class Trainer:
    """The state of a training run: raw and averaged network, optimizer, learning-rate schedule, step."""

    def __init__(
        self,
        network: UNetConfig,
        diffusion: DiffusionConfig,
        train: TrainConfig,
        device: torch.device,
        amp: bool = False,
    ) -> None:
        self.train_config, self.diffusion, self.device = train, diffusion, device
        self.process = VP(diffusion)
        self.amp = amp and device.type == "cuda"
        seed_step(train.seed, 0)
        self.net = place(UNet(network, diffusion=diffusion), device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=train.lr)
        self.scheduler = LambdaLR(self.optimizer, lambda step: lr_factor(step, train))
        self.step = 0
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval()

    def initialize_activations(self, images: Tensor) -> None:
        """Set every activation's first clip value, from one batch uint8 [N, C, H, W] or to the number asked for."""
        config = self.net.config
        if config.bits == FULL_PRECISION:
            return
        if self.train_config.act_init == "calibrate":
            seed_step(self.train_config.seed, 0)
            x_0 = to_model_range(images).to(self.device)
            t = torch.randint(self.diffusion.diffusion_steps, (len(x_0),), device=self.device)
            x_t = self.process.diffuse(x_0, t, torch.randn_like(x_0))
            calibrate_activations(self.net, [(x_t, t)])
        else:
            for name, parameter in self.net.named_parameters():
                if name.endswith("act_alpha"):
                    nn.init.constant_(parameter, float(self.train_config.act_init))
        self.ema.load_state_dict(self.net.state_dict())

    def train_step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step on uint8 [N, C, H, W] → (mean loss, gradient norm before clipping), both 0-dim."""
        seed_step(self.train_config.seed, self.step + 1)  # 0 was the initialization
        x_0 = to_model_range(images.to(self.device, non_blocking=True))
        t = torch.randint(self.diffusion.diffusion_steps, (len(x_0),), device=self.device)
        noise = torch.randn_like(x_0)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            loss = squared_error(self.net, self.process, x_0, t, noise).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.train_config.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.update_ema()
        self.step += 1
        return loss.detach(), norm

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema += (1 − decay)·(net − ema), on parameters only: a constant stays constant."""
        averaged, current = list(self.ema.parameters()), list(self.net.parameters())
        torch._foreach_lerp_(averaged, current, 1 - self.train_config.ema_decay)

    def payload(self, x_T: Tensor) -> dict:
        """The checkpoint: the reference's keys, and the configuration."""
        return {
            "kind": "ann",
            "format": checkpoint.FORMAT,
            "net_model": self.net.state_dict(),
            "ema_model": self.ema.state_dict(),
            "sched": self.scheduler.state_dict(),
            "optim": self.optimizer.state_dict(),
            "step": self.step,
            "x_T": x_T,
            "config": {
                "unet": self.net.config.to_dict(),
                "diffusion": self.diffusion.to_dict(),
                "train": self.train_config.to_dict(),
            },
        }

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError if it is another network's or another run's."""
        raw = checkpoint.read(path)
        loaded = checkpoint.load(path, weights="net")
        for name in UNetConfig.__dataclass_fields__:
            _require_same(path, name, getattr(loaded.net.config, name), getattr(self.net.config, name))
        stored = raw.get("config", {}).get("train", {})
        fixed = (*FIXED_ON_RESUME, "total_steps") if self.train_config.lr_decay != "none" else FIXED_ON_RESUME
        for name in fixed:
            _require_same(path, name, stored.get(name), getattr(self.train_config, name))
        try:
            self.net.load_state_dict(raw["net_model"])
            self.ema.load_state_dict(raw["ema_model"])
            self.optimizer.load_state_dict(raw["optim"])
            self.scheduler.load_state_dict(raw["sched"])
            self.step = int(raw["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot resume from {path}: it is no training checkpoint of this network ({error})"
            ) from None


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up (the first step already moves), then constant or half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.lr_decay == "none":
        return 1.0
    share = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _require_same(path: Path, name: str, stored: object, asked: object) -> None:
    if stored != asked:
        raise UserError(
            f"cannot resume {path}: it was trained with {name}={stored}, now {name}={asked}; "
            "correct the flag or choose another --logdir"
        )


def run(
    logdir: Path,
    dataset: ImageDataset,
    network: UNetConfig,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    sample: SampleConfig,
    schedule: Schedule,
    device: torch.device,
    *,
    resume: bool = True,
    amp: bool = False,
) -> int:
    """Train to `train.total_steps`, writing checkpoints, sample grids and logs to `logdir`. Returns the exit code."""
    path = logdir / CHECKPOINT
    if network.ch == network.norm_groups:
        print(
            f"note: --norm_groups={network.norm_groups} leaves one channel per group at --ch={network.ch}: such a norm "
            "cancels the time embedding; use fewer groups"
        )
    if path.exists() and not resume:
        raise UserError(
            f"{path} exists and would be overwritten: drop --noresume to continue it, or choose another --logdir"
        )
    trainer = Trainer(network, diffusion, train, device, amp)
    if path.exists():
        trainer.restore(path)
        print(f"resuming {path} at step {trainer.step}")
    else:
        trainer.initialize_activations(
            next(batches(dataset, max(64, train.batch_size), seed=train.seed, flip=train.flip))
        )
    if trainer.step >= train.total_steps:
        print(f"{path} is at step {trainer.step} of {train.total_steps}: nothing left to train")
        return 0
    log = RunLog(logdir, "train", trainer.step)
    stream = batches(
        dataset,
        train.batch_size,
        seed=train.seed,
        start_step=trainer.step,
        num_workers=schedule.num_workers,
        flip=train.flip,
    )
    save_grid_of_real_images(logdir, dataset, log, schedule.sample_size)
    try:
        return _loop(trainer, stream, log, logdir, sample, schedule)
    finally:
        log.close()


def _loop(trainer: Trainer, stream, log: RunLog, logdir: Path, sample: SampleConfig, schedule: Schedule) -> int:
    total = trainer.train_config.total_steps
    x_T = _grid_noise(trainer, sample, schedule.sample_size)

    def save() -> None:
        checkpoint.save(logdir / CHECKPOINT, trainer.payload(x_T))

    with Interruption() as interruption, tqdm(total=total, initial=trainer.step, desc="train", unit="step") as bar:
        while trainer.step < total and not interruption.requested:
            rate = trainer.scheduler.get_last_lr()[0]
            loss, norm = trainer.train_step(next(stream))
            step = trainer.step
            if due(step, schedule.log_step) or step == total:
                value = float(loss)
                if not math.isfinite(value):
                    raise UserError(
                        f"the loss is {value} at step {step}: lower --lr; the last checkpoint in {logdir} is intact"
                    )
                log.scalars(step - 1, loss=value, grad_norm=float(norm), lr=rate)
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update(1)
            if due(step, schedule.sample_step):
                write_sample_grid(trainer, sample, schedule.sample_size, logdir, log)
            if due(step, schedule.save_step):
                save()
            if due(step, schedule.eval_step) and schedule.score is not None:
                score_both(trainer, schedule.score, logdir, log)
    save()
    if interruption.requested:
        print(f"stopped at step {trainer.step}; run the same command to continue")
    return interruption.exit_code


def due(step: int, every: int) -> bool:
    """Whether something done every `every` steps (0: never) is done after `step` steps."""
    return every > 0 and step % every == 0


def score_both(trainer: Trainer, score: Callable, logdir: Path, log: RunLog) -> None:
    """Score raw and averaged weights; into the log, and as one line with `step` into `snn_eval.txt`."""
    trainer.net.eval()
    figures = score(trainer.net) | {f"{name}_EMA": value for name, value in score(trainer.ema).items()}
    trainer.net.train()
    log.scalars(trainer.step - 1, **figures)
    append_result(logdir / RESULTS, {"step": trainer.step, **figures})


def _grid_noise(trainer: Trainer, sample: SampleConfig, count: int) -> Tensor:
    shape = (trainer.net.in_channels, trainer.net.image_size, trainer.net.image_size)
    return ImageNoise(sample.seed, range(count), shape, "cpu")()


def write_sample_grid(trainer: Trainer, sample: SampleConfig, count: int, logdir: Path, log: RunLog) -> None:
    """`sample/{step}.png`: images of the averaged network, always from the same noise."""
    images = generate_all(trainer.ema, sample, count, count)
    save_grid(images, logdir / "sample" / f"{trainer.step}.png", nrow=max(1, math.isqrt(count)))
    log.image(trainer.step, "sample", grid_for_board(images))


def save_grid_of_real_images(logdir: Path, dataset: ImageDataset, log: RunLog, count: int) -> None:
    """`real.png`: what the samples should look like."""
    images = torch.stack([dataset[i] for i in range(min(count, len(dataset)))])
    save_grid(images, logdir / "real.png", nrow=max(1, math.isqrt(len(images))))
    log.image(0, "real_sample", grid_for_board(images))


def grid_for_board(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] → one picture uint8 [C, H', W']."""
    from torchvision.utils import make_grid

    return make_grid(images, nrow=max(1, math.isqrt(len(images))))
