"""Train a denoiser, in one process or many; resumable to the last bit."""

from __future__ import annotations

import contextlib
import math
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints import checkpoint
from ..config import SampleConfig
from ..data import ImageDataset, batches, labels_at
from ..diffusion import ImageNoise
from ..diffusion.process import network_shape
from ..distributed.runtime import prepare_folder
from ..errors import MemoryUserError, UserError, is_out_of_memory
from ..files.atomic import cause, replacing
from ..files.beside import free_name, previous_of, set_aside
from ..files.warning import warn
from ..generate.classes import columns
from ..generate.images import save_grid
from ..generate.sampling import generate_all
from ..latent import as_images, attach
from ..run.folder import BEST, CHECKPOINT, LINES, REAL_IMAGES, RESULTS, SNAPSHOTS, TRAINED, RunFolder
from ..run.lines import append_result, read_log
from ..run.log import RunLog
from ..run.tables import counted, images_of, parameters_of
from ..run.tracker import Tracker
from ..signals import Interruption
from ..training import by_time, power
from ..training.best import AVERAGED, BestKeeper
from ..training.trainer import Computing, Trainer
from .common import SilentLog, changes_text, due, newest, owning, record_changes
from .evaluate import sampling_settings
from .loading import Batches, home_of
from .plan import AS_USUAL, Options, Schedule, Training

IMAGES_A_BIN = 8  # of which a norm's statistics are steady enough to train with


def note_norms(plan: Training) -> None:
    """Print what speaks against the norms that were asked for."""
    groups, bins = (getattr(plan.network, name, None) for name in ("norm_groups", "norm_bins"))
    if plan.network.ch == groups and getattr(plan.network, "norm", "group") == "group":
        print(
            f"note: --norm_groups={groups} leaves one channel per group at --ch={plan.network.ch}: such a "
            "norm cancels the time embedding; use fewer groups"
        )
    rows = plan.train.batch_size // plan.train.accumulate
    if bins and bins > 1 and rows < IMAGES_A_BIN * bins:
        print(
            f"note: --norm_bins={bins} leaves about {rows / bins:g} of {counted(rows, 'image')} normalised at once to "
            f"each part of diffusion time: such statistics are noisy; use fewer parts, or {IMAGES_A_BIN} for each"
        )


def run(plan: Training, options: Options = AS_USUAL) -> int:
    """Train to `plan.train.total_steps`, writing checkpoints, sample grids and logs. Returns the exit code."""
    world, dataset, schedule = plan.world, plan.dataset, plan.schedule
    computing = Computing(options.amp, plan.sample.tf32, options.recompute)
    trainer = Trainer(plan.network, plan.diffusion, plan.train, world, computing, dataset)
    for net in (trainer.net, trainer.ema):
        attach(net, plan.autoencoder)
    logdir = prepare_folder(plan.folder.path)
    with owning(logdir, "train", world):
        note_norms(plan)
        fresh = not (logdir / CHECKPOINT).exists()
        start(trainer, logdir / CHECKPOINT, dataset, options)
        plan.folder.begin(world)
        if trainer.step == 0 and world.main:
            keep_earlier(plan.folder, schedule.save_step or plan.train.total_steps)
        owed = owed_after(trainer, plan.folder, schedule)
        if trainer.step >= plan.train.total_steps and not any(owed):
            if fresh and trainer.step == 0:
                keep_untrained(trainer, logdir / CHECKPOINT, plan.sample, schedule.sample_size)
            else:
                total = plan.train.total_steps
                print(f"{logdir / CHECKPOINT} is at step {trainer.step} of {total}: nothing left to train")
            return 0
        if world.main and trainer.step < plan.train.total_steps:
            print(_begun(logdir, trainer, dataset))
            if trainer.power.nets:
                every, total = snapshot_step(plan), plan.train.total_steps
                print(trainer.power.announcement(logdir / SNAPSHOTS, total // every - trainer.step // every))
        stream = Batches(dataset, trainer, schedule.num_workers, home_of(dataset, schedule.resident, world.device))
        log = _run_log(logdir, trainer, schedule.wandb) if world.main else SilentLog()
        if isinstance(log, RunLog):
            record_changes(log, trainer.step, trainer.changes)
            save_grid_of_real_images(trainer, logdir, dataset, log, schedule.sample_size)
        try:
            return _loop(trainer, stream, log, plan, owed)
        finally:
            log.close()


def keep_earlier(folder: RunFolder, saved_at: int) -> None:
    """Keep network, log and pictures of a training whose checkpoint is gone: a new one begins in their folder.

    saved_at: step of the first checkpoint. A log that goes further is no beginning of the new training, made again.
    Raises UserError.
    """
    log = folder.path / LINES
    try:
        set_aside(folder.path / TRAINED)
        steps = (entry.get("step") for entry in read_log(log) if entry.get("stage") == "train")
        if any(isinstance(step, int) and step >= saved_at for step in steps):
            set_aside(folder.sample_grid(0).parent)
            aside = free_name(previous_of(log))
            with replacing(aside) as temporary:
                shutil.copyfile(log, temporary)
            warn(f"{log} is of an earlier training; it is kept as {aside}")
    except OSError as error:
        raise UserError(f"cannot keep what an earlier run left in {folder.path}: {cause(error)}") from None


def _begun(logdir: Path, trainer: Trainer, dataset: ImageDataset) -> str:
    """What is trained, on what, where, and where it goes to."""
    work = f"{parameters_of(trainer.net)}, {images_of(dataset)}"
    steps = f"steps {trainer.step + 1} to {trainer.train_config.total_steps} on {trainer.world.device}"
    return f"{logdir}: {work}, {steps}"


def start(trainer: Trainer, path: Path, dataset: ImageDataset, options: Options) -> None:
    """Continue from the newest sound checkpoint, or begin. Raises UserError."""
    train, world = trainer.train_config, trainer.world
    if not options.resume and path.exists():
        raise UserError(
            f"{path} exists and would be overwritten: drop --noresume to continue it, or choose another --logdir"
        )
    if newest_path := newest(path, world):
        trainer.restore(newest_path, options.initial)
        print(f"resuming {newest_path} at step {trainer.step}{changes_text(trainer.changes)}")
    elif options.initial is not None:
        trainer.begin_with(options.initial)
    else:
        size = max(64, train.batch_size)
        labels = labels_at(dataset, size, 0, seed=train.seed) if trainer.num_classes else None
        trainer.initialize_activations(next(batches(dataset, size, seed=train.seed, flip=train.flip)), labels)


def _run_log(logdir: Path, trainer: Trainer, wandb: str | None) -> RunLog:
    return RunLog(logdir, "train", trainer.step, wandb=wandb, config=trainer.config())


def _loop(trainer: Trainer, stream: Batches, log: Tracker, plan: Training, owed: Owed) -> int:
    total, world, logdir = trainer.train_config.total_steps, trainer.world, plan.folder.path
    sample, schedule, snapshots = plan.sample, plan.schedule, snapshot_step(plan)
    keeper = Keeper(trainer, logdir / CHECKPOINT, _grid_noise(trainer, sample, schedule.sample_size))
    score_settings = (
        {**schedule.score_settings, **sampling_settings(sample, trainer.diffusion)} if schedule.score else None
    )
    best = BestKeeper(trainer, logdir / BEST, keeper.x_T, score_settings)
    bar = tqdm(total=total, initial=trainer.step, desc="train", unit="step", disable=None if world.main else True)
    with Interruption() as interruption, bar, kept_on_failure(keeper):
        stop = 0
        if owed.grid:
            write_sample_grid(trainer, plan, log)
        if owed.score and schedule.score is not None:
            best.consider(score_both(trainer, schedule.score, logdir, log))
        while trainer.step < total and not stop:
            rate = float(trainer.scheduler.get_last_lr()[0])
            loss, norm = trainer.train_step(stream.next(trainer.step), stream.labels(trainer.step))
            step = trainer.step
            if due(step, schedule.log_step) or step == total or trainer.device.type == "cpu":
                trainer.check_finite(logdir)
            if due(step, schedule.log_step) or step == total:
                value = float(world.sum(loss) / world.size)
                log.scalars(
                    step - 1, loss=value, grad_norm=float(norm), lr=rate, **by_time.means(trainer.by_time, world)
                )
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update(1)
            if due(step, schedule.sample_step):
                write_sample_grid(trainer, plan, log)
            if due(step, snapshots) and world.main:
                trainer.power.write(logdir / SNAPSHOTS, trainer.about())
            if due(step, schedule.save_step):
                keeper.save()
            if due(step, schedule.eval_step) and schedule.score is not None:
                best.consider(score_both(trainer, schedule.score, logdir, log))
            stop = world.largest(interruption.requested)  # all stop at the same step
        keeper.save()
        world.wait()  # what comes next reads the file
    if stop:
        print(f"stopped at step {trainer.step}; run the same command to continue")
        return 128 + stop
    return 0


def snapshot_step(plan: Training) -> int:
    """Steps from one snapshot of power-function averages to the next; 0 where none are kept."""
    if not plan.train.power_ema:
        return 0
    return plan.schedule.power_ema_step or max(1, plan.train.total_steps // power.SNAPSHOTS)


class Owed(NamedTuple):
    """What was due after the step that a run continues from, where a fault kept the earlier run from it."""

    grid: bool
    score: bool


def owed_after(trainer: Trainer, folder: RunFolder, schedule: Schedule) -> Owed:
    """All processes call it, and answer alike."""
    step, world = trainer.step, trainer.world
    if step == 0:
        return Owed(False, False)
    grid = due(step, schedule.sample_step) and schedule.sample_size > 0 and not folder.sample_grid(step).exists()
    score = due(step, schedule.eval_step) and schedule.score is not None
    if score and world.main:
        entries = (entry for entry in read_log(folder.path / LINES) if entry.get("step") == step - 1)
        score = not any(name.endswith(AVERAGED) for entry in entries for name in entry)
    return Owed(bool(world.largest(world.main and grid)), bool(world.largest(world.main and score)))


def keep_untrained(trainer: Trainer, path: Path, sample: SampleConfig, sample_size: int) -> None:
    """Write the network that a training would begin with. Raises UserError."""
    keeper = Keeper(trainer, path, _grid_noise(trainer, sample, sample_size))
    keeper.saved = -1
    keeper.save()
    trainer.world.wait()  # what comes next reads the file
    if trainer.world.main:
        print(f"{path}: {trainer.net.config.bits} bits, calibrated, not trained")


class Keeper:
    """Writes checkpoints, the newest and the one before it."""

    def __init__(self, trainer: Trainer, path: Path, x_T: Tensor) -> None:
        self.trainer, self.path, self.x_T = trainer, path, x_T
        self.saved = trainer.step  # what it begins with is nothing to lose

    def save(self) -> None:
        """Write the present state, once. Raises UserError, which names the rescue file if one could be written."""
        trainer = self.trainer
        if self.saved == trainer.step:
            return
        trainer.check_finite(self.path.parent)
        if trainer.world.main:
            payload = trainer.payload(self.x_T)
            try:
                checkpoint.save(self.path, payload, keep_previous=True)
            except UserError as error:
                self.saved = trainer.step
                raise checkpoint.rescued(self.path, payload, error) from None
        self.saved = trainer.step

    def save_after(self, error: Exception) -> str:
        """Write what `error` has left whole in memory, if that is new; says where, or nothing. Raises nothing."""
        trainer = self.trainer
        traceback.clear_frames(error.__traceback__)  # a step's activations live as long as they
        try:
            if self.saved == trainer.step or not trainer.consistent or not trainer.world.main or int(trainer.first_bad):
                return ""
            trainer.optimizer.zero_grad(set_to_none=True)
            self.save()
        except Exception as second:
            warn(f"step {trainer.step} could not be kept: {second}")
            return ""
        return f"; step {trainer.step} is kept in {self.path}"


@contextlib.contextmanager
def kept_on_failure(keeper: Keeper) -> Iterator[None]:
    """Save before an error leaves: an unreadable image, memory that ran out, a lost process harm no step before.

    Raises what it was, or UserError, which says so too, where users can help it.
    """
    try:
        yield
    except Exception as error:
        kept = keeper.save_after(error)
        if isinstance(error, UserError) or is_out_of_memory(error):
            cause = MemoryUserError(error) if is_out_of_memory(error) else error
            raise UserError(f"{cause}{kept}") from None
        if kept:
            warn(kept.removeprefix("; "))
        raise


def score_both(trainer: Trainer, score: Callable, logdir: Path, log: Tracker) -> dict[str, float]:
    """Score raw and averaged weights; into the log, and as one line with `step` into `snn_eval.txt`. The figures."""
    trainer.net.eval()
    figures = score(trainer.net) | {f"{name}{AVERAGED}": value for name, value in score(trainer.ema).items()}
    trainer.net.train()
    log.scalars(trainer.step - 1, **figures)
    if trainer.world.main:
        append_result(logdir / RESULTS, {"step": trainer.step, **figures})
    return figures


def _grid_noise(trainer: Trainer, sample: SampleConfig, count: int) -> Tensor:
    return ImageNoise(sample.seed, range(count), network_shape(trainer.net), "cpu")()


def write_sample_grid(trainer: Trainer, plan: Training, log: Tracker) -> None:
    """`sample/{step}.png`: images of the averaged network, always from the same noise."""
    sample, count = plan.sample, plan.schedule.sample_size
    if count == 0:
        return
    images = generate_all(trainer.ema, sample, count, count, trainer.world)
    if not trainer.world.main:
        return
    save_grid(images, plan.folder.sample_grid(trainer.step), columns(trainer.net, sample, count))
    log.image(trainer.step, "sample", grid_for_board(images))


def save_grid_of_real_images(trainer: Trainer, logdir: Path, dataset: ImageDataset, log: Tracker, count: int) -> None:
    """`real.png`: what the samples should look like; of latents what their decoder makes of them."""
    if count == 0:
        return
    images = torch.stack([dataset[i] for i in range(min(count, len(dataset)))])
    images = images if trainer.net.autoencoder is None else as_images(trainer.net)(images)
    save_grid(images, logdir / REAL_IMAGES, nrow=max(1, math.isqrt(len(images))))
    log.image(0, "real_sample", grid_for_board(images))


def grid_for_board(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] → one picture uint8 [C, H', W']."""
    from torchvision.utils import make_grid

    return make_grid(images, nrow=max(1, math.isqrt(len(images))))
