"""Fine-tune a converted network block by block; resumable at any block, judged on images held back from tuning."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..config import SampleConfig, SpikingConfig, require
from ..convert import SpikingDenoiser, convert
from ..data import ImageDataset, batches, to_model_range
from ..diffusion import VP
from ..errors import UserError
from ..finetune import BlockReport, BlockTuning, prediction_gap, tied_proxy, tunable_blocks, tune_block
from ..io import checkpoint
from ..io.atomic import write_text
from ..io.images import save_grid
from ..nets import UNet
from ..report.log import RunLog
from ..report.tables import text_table
from ..runtime import Interruption, place, prepare_folder, seed_from
from ..sampling import generate_all
from .convert import gaps_under, print_gap, write_gap
from .train import due

BEST = "model_best.pt"
STATE = "ft_state.pt"
GAP_FILE = "gap_finetuned.json"
HELD_BACK = 32  # images of the validation batch, never tuned on


@dataclass(frozen=True)
class FineTuneConfig:
    """steps, lr: per block. sample_size 0: no sample grids. resume: continue from the last finished block."""

    steps: int
    lr: float
    batch_size: int
    save_step: int
    sample_size: int
    resume: bool
    seed: int

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"--ft_steps={self.steps}: use at least 1")
        require(self.lr > 0, f"--lr={self.lr}: must be positive")
        require(self.batch_size >= 1, f"--ft_batch_size={self.batch_size}: use at least 1")

    def fixed(self) -> dict:
        """What a resumed run must share with its beginning."""
        return {"ft_steps": self.steps, "lr": self.lr, "ft_batch_size": self.batch_size, "seed": self.seed}


def folder_name(bits: int) -> str:
    """Folder of fine-tuning results inside the logdir."""
    return f"SNN_{bits}bit_ft"


def run(
    logdir: Path,
    source: checkpoint.Loaded,
    dataset: ImageDataset,
    spiking: SpikingConfig,
    config: FineTuneConfig,
    sample: SampleConfig,
    device: torch.device,
    *,
    gap_images: int = 0,
) -> int:
    """Tune every block of the network converted from `source`; write `SNN_<bit>bit_ft/`. Returns the exit code."""
    require(
        spiking.schedule == "stream",
        "--schedule=layer_sync equals the quantized network already: fine-tune --schedule=stream",
    )
    ann: UNet = place(source.net, device)
    run = _Run(prepare_folder(logdir / folder_name(ann.config.bits)), ann, spiking, config, source.hash)
    run.restore()
    log = RunLog(logdir, "finetune", run.steps_done)
    try:
        code = _tune_blocks(run, dataset, sample, log)
    finally:
        log.close()
    if code == 0:
        run.finish()
        if gap_images:
            measure_result(run, logdir, gap_images)
    return code


def measure_result(run: _Run, logdir: Path, images: int) -> None:
    """`gap_finetuned.json`: the gap of `model_best.pt`, block by block, beside that of the converted network."""
    best = checkpoint.load(run.folder / BEST).net
    place(best, next(run.ann.parameters()).device)
    spiking, seed = run.snn.spiking, run.config.seed
    [before] = gaps_under(run.ann, convert(run.ann, spiking), [spiking], images, seed)
    [after] = gaps_under(run.ann, best, [spiking], images, seed)
    reports = [dataclasses.replace(before, name="converted"), dataclasses.replace(after, name="fine-tuned")]
    write_gap(logdir / GAP_FILE, reports, images)
    print_gap(reports, images)


class _Run:
    """Networks, finished blocks and files of one fine-tuning run."""

    def __init__(self, folder: Path, ann: UNet, spiking: SpikingConfig, config: FineTuneConfig, source: str) -> None:
        self.folder, self.ann, self.config, self.source = folder, ann, config, source
        self.snn: SpikingDenoiser = convert(ann, spiking)
        self.proxy = tied_proxy(ann, self.snn)
        self.reports: list[BlockReport] = []
        self.gaps: list[float] = []  # prediction gap on held-back images: converted, then after each block

    @property
    def steps_done(self) -> int:
        return len(self.reports) * self.config.steps

    def identity(self) -> dict:
        return {**self.config.fixed(), "source": self.source, "spiking": self.snn.spiking.to_dict()}

    def payload(self) -> dict:
        return checkpoint.snn_payload(self.snn, stage="finetuned", source=self.source, step=self.steps_done)

    def restore(self) -> None:
        """Take up a run that stopped between two blocks. Raises UserError if it is another run's."""
        path = self.folder / STATE
        if not path.exists():
            return
        if not self.config.resume:
            raise UserError(f"{path} exists and would be overwritten: drop --noresume, or remove the folder")
        raw = checkpoint.read(path)
        stored = raw.get("identity", {})
        for name, value in self.identity().items():
            if stored.get(name) != value:
                raise UserError(
                    f"cannot resume {path}: it was made with {name}={stored.get(name)}, now {name}={value}; "
                    "correct the flag or remove the folder"
                )
        self.snn.unet.load_state_dict(raw["ema_model"])  # copies in place: the proxy stays tied
        self.reports = [BlockReport(**report) for report in raw["reports"]]
        self.gaps = list(raw["gaps"])
        print(f"resuming {self.folder}: {len(self.reports)} blocks are done")

    def save(self) -> None:
        reports = [dataclasses.asdict(report) for report in self.reports]
        extra = {"identity": self.identity(), "reports": reports, "gaps": self.gaps}
        checkpoint.save(self.folder / STATE, self.payload() | extra)

    def keep_if_best(self) -> None:
        """`model_best.pt` is the network with the smallest prediction gap so far, the untouched one included."""
        if self.gaps[-1] <= min(self.gaps):
            checkpoint.save(self.folder / BEST, self.payload() | {"prediction_gap": self.gaps[-1]})

    def finish(self) -> None:
        """Print and save the table of all blocks."""
        header = ["block", "gap before", "gap after", "best step", "steps", "seconds", "prediction gap"]
        rows = [
            [r.block, r.gap_before, r.gap_after, r.best_step, r.steps, r.seconds, gap]
            for r, gap in zip(self.reports, self.gaps[1:], strict=True)
        ]
        print(text_table(header, rows))
        best = min(self.gaps)
        print(f"prediction gap on {HELD_BACK} held-back images: {self.gaps[0]:.4f} converted, {best:.4f} best")
        print(f"{self.folder / BEST}: the network with the smallest prediction gap")
        summary = {"identity": self.identity(), "prediction_gap": self.gaps}
        summary["blocks"] = [dataclasses.asdict(report) for report in self.reports]
        write_text(self.folder / "finetune.json", json.dumps(summary, indent=1) + "\n")


class _Interrupted(Exception):  # noqa: N818 - control flow, not an error
    """Leaves a block that is being tuned; the next run begins it anew."""


def hold_back(dataset: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """(images to tune on, the last `HELD_BACK` images, to judge on). Raises UserError for a set too small to split."""
    count = len(dataset)
    require(
        count > HELD_BACK,
        f"{dataset.name} has {count} images: fine-tuning holds {HELD_BACK} back and needs more than that",
    )
    return dataset.part(0, count - HELD_BACK), dataset.part(count - HELD_BACK, count)


def _tune_blocks(run: _Run, dataset: ImageDataset, sample: SampleConfig, log: RunLog) -> int:
    config, names = run.config, tunable_blocks(run.snn)
    tuned_on, judged_on = hold_back(dataset)
    held_back = [next(noised_batches(judged_on, run.ann, HELD_BACK, config.seed, start_step=0))]
    if not run.gaps:
        run.gaps.append(prediction_gap(run.ann, run.snn, held_back))
        run.keep_if_best()
    with Interruption() as interruption, tqdm(total=len(names) * config.steps, desc="fine-tune", unit="step") as bar:
        bar.update(run.steps_done)
        for name in names[len(run.reports) :]:
            first = run.steps_done
            stream = noised_batches(tuned_on, run.ann, config.batch_size, config.seed, start_step=first)

            def on_step(step: int, loss: float, first: int = first, name: str = name) -> None:
                if interruption.requested:
                    raise _Interrupted
                bar.update(1)
                if step == 1 or step % 10 == 0:
                    log.scalars(first + step - 1, ft_loss=loss)
                if step < config.steps and due(step, config.save_step):
                    save_backpack(run, f"{name}_{step - 1}")

            bar.set_postfix_str(name)
            tuning = BlockTuning(config.steps, config.lr)
            try:
                report = tune_block(name, run.ann, run.snn, run.proxy, stream, held_back, tuning, on_step)
            except _Interrupted:
                break
            bar.update(config.steps - report.steps)
            run.reports.append(report)
            run.gaps.append(prediction_gap(run.ann, run.snn, held_back))
            log.scalars(first + report.steps, block_gap=report.gap_after, prediction_gap=run.gaps[-1])
            _snapshot(run, name, report, sample)
            run.keep_if_best()
            run.save()
    if interruption.requested:
        print(f"stopped after {len(run.reports)} of {len(names)} blocks; run the same command to continue")
    return interruption.exit_code


def _snapshot(run: _Run, name: str, report: BlockReport, sample: SampleConfig) -> None:
    """`model_backpacks/{block}_{step}_model.pt` and `ft_blocks_samples/{block}_{step}_result.png`, step 0-based."""
    stem = f"{name}_{max(0, report.steps - 1)}"
    save_backpack(run, stem)
    if run.config.sample_size:
        images = generate_all(run.snn, sample, run.config.sample_size, run.config.sample_size)
        path = run.folder / "ft_blocks_samples" / f"{stem}_result.png"
        save_grid(images, path, max(1, math.isqrt(len(images))))


def save_backpack(run: _Run, stem: str) -> None:
    """`model_backpacks/{stem}_model.pt`: the network as it is now."""
    folder = run.folder / "model_backpacks"
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / f"{stem}_model.pt", run.payload())


def noised_batches(
    dataset: ImageDataset, net: UNet, batch_size: int, seed: int, start_step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (x_t, t): real images noised at t uniform over all diffusion steps; a function of (seed, step)."""
    process = VP(net.diffusion)
    like = next(net.parameters())
    for step, images in enumerate(batches(dataset, batch_size, seed=seed, start_step=start_step), start_step):
        generator = torch.Generator().manual_seed(seed_from(seed, step))
        x_0 = to_model_range(images)
        t = torch.randint(process.diffusion_steps, (len(x_0),), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        x_t = process.diffuse(x_0, t, noise)
        yield x_t.to(like.device, like.dtype), t.to(like.device)
