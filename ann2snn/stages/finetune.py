"""Fine-tune a converted network block by block; resumable at any block, judged on images held back from tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from ..checkpoints import checkpoint
from ..config import SampleConfig, SpikingConfig, require
from ..convert import SpikingNetwork
from ..data import ImageDataset
from ..distributed.runtime import place, prepare_folder
from ..distributed.world import World
from ..finetune import BlockReport, Networks, prediction_gap, tune_block
from ..finetune.inputs import HELD_BACK, hold_back, noised_batches, sampler_batches
from ..finetune.subject import Batch
from ..generate.classes import columns
from ..generate.images import save_grid
from ..generate.probe import OwnPath, sampler_calls
from ..generate.sampling import generate_all
from ..run.folder import BLOCK_SAMPLES, CARRY_FILE, COST_FILE, GAP_FILE, TUNED, RunFolder
from ..run.log import RunLog
from ..run.tables import counted, images_of, parameters_of
from ..run.tracker import Tracker
from ..signals import Interruption
from .carrying import MOST_CALLS, carried_errors, measure_carrying
from .common import SilentLog, due, owning, record_changes
from .convert import converted, gaps_under, print_gap, write_gap
from .cost import measure_and_write
from .finetune_run import FineTuneConfig, Run, made_of

CARRIED_IMAGES = 8  # that carried calls are judged on: a trajectory has many calls of each


def run(
    outer: RunFolder,
    source: checkpoint.Loaded,
    dataset: ImageDataset,
    spiking: SpikingConfig,
    config: FineTuneConfig,
    sample: SampleConfig,
    world: World,
) -> int:
    """Tune every block of the network converted from `source`; write `SNN_<bit>bit_ft/`. Returns the exit code."""
    require(
        spiking.schedule == "stream",
        "--schedule=layer_sync equals the quantized network already: fine-tune --schedule=stream",
    )
    world.rows(config.batch_size, "--ft_batch_size")
    ann = place(source.unconverted, world.device)
    if sample.carry:
        spiking.check_carrying()
        calls = sample.calls(ann.diffusion)
        require(
            calls <= MOST_CALLS,
            f"--carry judges on all calls of a sampler, {calls:,} an image: use {MOST_CALLS} at most (--sampler_steps)",
        )
    folder = prepare_folder(outer.path / config.folder_name(ann.config.bits))
    with owning(folder, "finetune", world):
        inputs = made_of(dataset, sample, ann, config.inputs)
        run = Run(folder, ann, spiking, config, source, world, inputs)
        run.restore()
        outer.begin(world)
        log = RunLog(run.folder, "finetune", run.log_step) if world.main else SilentLog()
        if isinstance(log, RunLog):
            record_changes(log, run.log_step, run.changes)
        try:
            code = _tune_all(run, dataset, sample, log)
        finally:
            log.close()
        if code == 0 and world.main:
            run.finish()
            if config.gap_images:
                measure_result(run, sample)
        world.wait()
    return code


def measure_result(run: Run, sample: SampleConfig) -> None:
    """`gap.json`, `cost.json` and with `sample.carry` `carry.json` of `model_best.pt`, in the run's folder.

    Beside those of the converted network.
    """
    best = checkpoint.load(run.folder / TUNED).net
    assert isinstance(best, SpikingNetwork)  # `Run.keep_if_best` writes no other
    place(best, next(run.ann.parameters()).device)
    best.set_spike_chunk(run.config.spike_chunk)
    spiking, seed, images = run.snn.spiking, run.config.seed, run.config.gap_images
    before = converted(run.ann, spiking, run.config.spike_chunk)
    gaps = {"converted": before, "fine-tuned": best}
    visited = OwnPath(run.ann, images, seed)
    reports = [dataclasses.replace(gaps_under(visited, net, [spiking])[0], name=name) for name, net in gaps.items()]
    write_gap(run.folder / GAP_FILE, reports, images, depth=best.depth)
    print_gap(reports, images)
    calls = sample.calls(run.ann.diffusion) * sample.branches
    measure_and_write(run.folder / COST_FILE, visited, gaps, [spiking], calls)
    if sample.carry:
        path = run.folder / CARRY_FILE
        measure_carrying(path, visited, best, sample, "fine-tuned")


class _Judge:
    """The figure by which the best network is kept: relative error of the prediction on inputs that tuning never sees.

    Of calls from rest, on images held back; with `sample.carry` the mean over all calls of that sampler, with levels
    carried from one to the next.
    """

    def __init__(self, run: Run, held_back: list[Batch], sample: SampleConfig) -> None:
        self.run, self.held_back, self.steps = run, held_back, sample.carry_steps
        self.calls = sampler_calls(run.ann, sample.from_rest(), CARRIED_IMAGES) if sample.carry else []

    def gap(self) -> float:
        if not self.calls:
            return prediction_gap(self.run.ann, self.run.snn, self.held_back, self.run.world)
        errors = carried_errors(self.run.ann, self.run.snn, self.calls, self.steps)
        return sum(errors) / len(errors)


class _Interrupted(Exception):  # noqa: N818 - control flow, not an error
    """Leaves a block that is being tuned, with the signal's number; the next run begins it anew."""


def _tune_all(run: Run, dataset: ImageDataset, sample: SampleConfig, log: Tracker) -> int:
    tuned_on, judged_on = hold_back(dataset)
    judged = next(noised_batches(judged_on, run.ann, HELD_BACK, run.config.seed, start_step=0))
    few = HELD_BACK < run.world.size  # then every process judges on all
    held_back = [judged if few else tuple(map(run.world.share, judged))]
    judge = _Judge(run, held_back, sample)
    if not run.gaps:
        run.keep_earlier()
        run.gaps.append(judge.gap())
    run.keep_if_best()  # also of a resumed run: a rescued state comes without it
    bar = tqdm(total=run.steps_planned, desc="fine-tune", unit="step", disable=None if run.world.main else True)
    if run.world.main:
        blocks = counted(len(run.subjects) - len(run.reports), "block")
        print(f"{run.folder}: {parameters_of(run.snn)}, {images_of(tuned_on)}, {blocks} to tune on {run.world.device}")
    stop = 0
    with Interruption() as interruption, bar:
        bar.update(run.steps_done)
        for name in run.subjects[len(run.reports) :]:
            first = run.steps_done
            stream = _inputs(run, tuned_on, sample, first)
            bar.set_postfix_str(name)
            try:
                report = _tune_one(run, name, stream, held_back, interruption, bar, log)
            except _Interrupted as interrupted:
                stop = interrupted.args[0]
                break
            bar.update(run.config.tuning(name).steps - report.steps)
            run.reports.append(report)
            run.gaps.append(judge.gap())
            if run.world.main:
                tqdm.write(
                    f"{name}: gap {report.gap_before:.4f} → {report.gap_after:.4f} in {report.seconds:.0f} s; "
                    f"prediction {run.gaps[-1]:.4f}"
                )
            log.scalars(run.log_step - 1, block_gap=report.gap_after, prediction_gap=run.gaps[-1])
            with run.rescuing():
                _snapshot(run, name, report, sample)
                run.keep_if_best()
                run.save()
    if stop:
        blocks = counted(len(run.subjects), "block")
        print(f"stopped after {len(run.reports)} of {blocks}; run the same command to continue")
        return 128 + stop
    return 0


def _inputs(run: Run, dataset: ImageDataset, sample: SampleConfig, first: int) -> Iterator[Batch]:
    config = run.config
    if config.inputs == "sampler":
        return sampler_batches(run.ann, sample, config.batch_size, config.seed, start_step=first, world=run.world)
    return noised_batches(dataset, run.ann, config.batch_size, config.seed, start_step=first, world=run.world)


def _tune_one(
    run: Run,
    name: str,
    stream: Iterator[Batch],
    held_back: list[Batch],
    interruption: Interruption,
    bar: tqdm,
    log: Tracker,
) -> BlockReport:
    """Tune one block, with progress, log and snapshots. Raises _Interrupted when asked to stop."""
    tuning, first = run.config.tuning(name), run.log_step

    def on_step(step: int, loss: Tensor) -> None:
        if stop := run.world.largest(interruption.requested):  # all processes at the same step
            raise _Interrupted(stop)
        bar.update(1)
        if step == 1 or step % 10 == 0:
            log.scalars(first + step - 1, ft_loss=float(loss))
        if step < tuning.steps and due(step, run.config.save_step):
            run.save_backpack(f"{name}_{step - 1}")

    networks = Networks(run.ann, run.snn, run.proxy)
    return tune_block(name, networks, stream, held_back, tuning, on_step, run.world)


def _snapshot(run: Run, name: str, report: BlockReport, sample: SampleConfig) -> None:
    """`model_backpacks/{block}_{step}_model.pt` and `ft_blocks_samples/{block}_{step}_result.png`, step 0-based."""
    stem = f"{name}_{max(0, report.steps - 1)}"
    run.save_backpack(stem)
    if run.config.sample_size:
        images = generate_all(run.snn, sample, run.config.sample_size, run.config.sample_size, run.world)
        if not run.world.main:
            return
        path = run.folder / BLOCK_SAMPLES / f"{stem}_result.png"
        save_grid(images, path, columns(run.snn, sample, len(images)))
