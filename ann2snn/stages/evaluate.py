"""Generate images, keep them, score them; one JSON line per result with everything that makes it comparable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import checkpoint
from ..checkpoints.seal import content_hash
from ..config import DiffusionConfig, SampleConfig, require
from ..convert import SpikingNetwork
from ..data import ImageDataset
from ..diffusion.process import clips, decoded_size, image_channels, options_that_count, uses_eta
from ..distributed.runtime import place, prepare_folder
from ..distributed.world import ALONE, World
from ..files.atomic import sweep
from ..generate.classes import columns
from ..generate.images import (
    ImageWriter,
    check_npz,
    existing_indices,
    image_path,
    npz_path,
    read_images,
    save_grid,
    save_npz,
    stale_npzs,
)
from ..generate.sampling import Given, Hooks, generate, generate_batches, image_groups
from ..generate.spikes import keep_spikes, kept_spikes
from ..metrics.features import FeatureExtractor
from ..metrics.metric import Metric
from ..metrics.score import make_stats as gather_stats
from ..metrics.score import measure
from ..nets.direct import DirectDenoiser
from ..report.trajectory import Trajectory, write_trajectory
from ..run.folder import GENERATED, PICTURES, RESULTS, SPIKES_FILE, RunFolder
from ..run.lines import append_result, timestamp
from ..run.tables import counted, first_of, parameters_of, show
from .claims import claim_folder
from .common import keep_stats, owning
from .generation import NO_SCORING, Generation, Scoring
from .paths import as_pictures

SCORE_BATCH = 64


@dataclass(frozen=True)
class EvalConfig:
    """images_dir None: a folder inside the logdir named after the settings.

    grid: also write a picture of the first `grid_images`, `grid_row` to a line, to `grid_path` inside the logdir; by
    default in `images/`, named after the folder of the images, and as many to a line as there are classes, or lines.
    trajectory: images whose paths from noise are drawn and animated (`trajectory_format`), 0 for none.
    """

    num_images: int
    batch_size: int
    images_dir: str | None = None
    grid: bool = False
    grid_images: int = 64
    grid_row: int = 0
    grid_path: str = ""
    trajectory: int = 0
    trajectory_format: str = "webp"

    def __post_init__(self) -> None:
        require(self.num_images >= 1, f"--num_images={self.num_images}: use at least 1")
        require(self.batch_size >= 1, f"--batch_size={self.batch_size}: use at least 1")
        require(0 <= self.trajectory <= 64, f"--trajectory_images={self.trajectory}: use 1 to 64")


def require_spread(images: int) -> None:
    """Raise UserError for fewer images than a covariance can be computed from."""
    require(images >= 2, f"--num_images={images}: a score needs at least 2; --sample_only generates without one")


def settings(source: checkpoint.Loaded, sample: SampleConfig, statistics: Tensor | None = None) -> dict:
    """Everything that decides which images come out. statistics: of analytic_dpm, which depend on images, too."""
    known = {} if statistics is None else {"statistics": _digest({"gamma": statistics})}
    net = source.net
    spiking = net.spiking.to_dict() if isinstance(net, SpikingNetwork) else None
    return {
        "checkpoint": source.hash,
        "step": source.step,
        "network": source.raw.get("stage", "converted" if spiking else "trained"),
        "arch": net.config.arch,
        "bits": net.config.bits,
        "weights": source.weights,
        "spiking": spiking,
        "direct": direct_settings(net),
        **sampling_settings(sample, net.diffusion),
        "process": net.diffusion.process,
        **({"autoencoder": net.diffusion.autoencoder} if net.diffusion.autoencoder else {}),
        **known,
    }


def sampling_settings(sample: SampleConfig, diffusion: DiffusionConfig) -> dict:
    """Of these, the ones that say how a network is sampled."""
    return {
        "sampler": sample.sampler,
        "sampler_steps": sample.calls(diffusion),
        "eta": sample.eta if uses_eta(sample) else None,
        "clip_x0": clips(sample, diffusion),
        "var_type": diffusion.var_type,
        "seed": sample.seed,
        "sampler_options": options_that_count(sample),
    }


def direct_settings(net: nn.Module) -> dict | None:
    """How a directly trained spiking network runs; None for another."""
    if not isinstance(net, DirectDenoiser):
        return None
    return {name: value for name, value in net.spiking.to_dict().items() if name != "arch"}  # which stands beside it


def run(folder: RunFolder, generation: Generation, config: EvalConfig, scoring: Scoring = NO_SCORING) -> int:
    """Generate what is missing of `config.num_images`, then score them where that is asked for. Returns the exit code.

    Scores go to `folder`, images below it, or where `config` says.
    """
    source, sample, world, logdir = generation.source, generation.sample, generation.world, folder.path
    metrics = []
    if scoring:  # what cannot be measured stops it before anything is sampled
        require_spread(config.num_images)
        metrics = scoring.made(config.num_images, image_channels(source.net), decoded_size(source.net), world.device)
    made_with = settings(source, sample, generation.statistics)
    flag = "--images_dir" if config.images_dir else "--logdir"
    images = prepare_folder(config.images_dir or logdir / GENERATED / folder_name(made_with), flag)
    with owning(images, "generate", world):
        if world.main:
            sweep(images.parent, depth=0)  # of an npz that a killed run was writing beside the images
            check_npz(npz_path(images, config.num_images))
            claim_folder(images, made_with)
        folder.begin(world)
        generate_missing(images, generation, config)
        if world.main:
            # Folders of a user's may have one name.
            name = f"{images.name}_{_digest(made_with)}" if config.images_dir else images.name
            grid = logdir / (config.grid_path or f"{PICTURES}/{name}.png")
            present(grid, images, config, source.net, sample)
            if config.trajectory:
                follow(logdir / PICTURES / f"trajectory_{name}", generation, config)
        world.wait()
        if not scoring:
            return 0
        conditions: dict[str, object] = {"image_size": decoded_size(source.net).stored, "device": str(world.device)}
        conditions |= {"reference": scoring.stats_name, "time_steps": getattr(source.net, "time_steps", None)}
        count = config.num_images
        if sample.carry:
            is_stream = made_with["spiking"]["schedule"] == "stream"
            conditions |= carried_counts(images, count, sample.calls(source.net.diffusion), is_stream)
        scored = Scored(lambda world: image_batches(images, count, world), made_with | conditions)
        score_and_record(logdir, scored, scoring, metrics, world)
    return 0


def carried_counts(folder: Path, count: int, calls: int, is_stream: bool) -> dict[str, object]:
    """Of the images 0..count−1 of `folder`, in the mean: spikes a call, of `calls`; and restarts.

    time_steps_per_call: of `stream` alone; one pass of layer_sync takes depth × T steps, carried or not.
    restarts_per_image: calls that began from rest, the first among them.
    """
    image_spikes = kept_spikes(folder, count)
    if len(image_spikes) < count:
        known = counted(len(image_spikes), "image")
        print(f"note: {folder / SPIKES_FILE} has the spikes of {known} of {count:,}: it has lost lines, or is lost")
    if not image_spikes:
        return {}
    spikes, steps, restarts = (
        sum(getattr(image, name) for image in image_spikes) / len(image_spikes)
        for name in ("spikes", "time_steps", "restarts")
    )
    timed = {"time_steps_per_call": steps / calls} if is_stream else {}
    return {"spikes_per_call": spikes / calls, **timed, "restarts_per_image": restarts}


def present(grid: Path, folder: Path, config: EvalConfig, net: nn.Module, sample: SampleConfig) -> None:
    """The images of `folder` in one npz beside it, and if asked for as the picture `grid`.

    The npz is written anew each time: an older one may hold images that the folder no longer has.
    """
    images = torch.cat([batch for _, batch in image_batches(folder, config.num_images)])
    save_npz(images, npz_path(folder, config.num_images))
    for stale in stale_npzs(folder, images):
        print(f"note: {stale} holds other images than {folder}, those of an earlier run: delete it")
    if config.grid and config.grid_images:
        count = min(config.grid_images, config.num_images)
        write_grid(grid, folder, count, config.grid_row or columns(net, sample, count))
        print(f"{grid}: the first {count}")
    print(f"{folder}: {counted(config.num_images, 'image')}")


def follow(path: Path, generation: Generation, config: EvalConfig) -> None:
    """The first images once more, with the sampler's states on the way: a picture `{path}.png` and an animation.

    Called by the main process alone. States are shown as images: of CLD the positions, of blur diffusion the pixels.
    """
    source, sample, world = generation.source, generation.sample, generation.world
    net = place(source.net, world.device).eval()
    paths: list[Trajectory] = []
    images: list[Tensor] = []
    pictures = as_pictures(net)
    count = min(config.trajectory, config.num_images)
    given = Given(generation.statistics)

    def keep(time: float, state: Tensor) -> None:
        paths[-1].add(pictures(state))

    with ALONE.progress(count * sample.calls(net.diffusion) * sample.branches, "trajectory", "call") as bar:

        def advance(x: Tensor, *constants: Tensor) -> None:
            bar.update(len(x))

        for part in image_groups(net, range(count)):
            paths.append(Trajectory())
            images.append(generate(net, sample, part, given, Hooks(advance, keep)))
    frames = torch.cat([kept.frames(end) for kept, end in zip(paths, images, strict=True)], dim=1)
    for written in write_trajectory(frames, path, config.trajectory_format):
        print(f"{written}: from noise to the {first_of(count, 'image')}")


@dataclass(frozen=True)
class Scored:
    """Images to be scored. batches: a world → its process's share, (indices, uint8 [B, C, H, W]) a batch.

    made_with: for the record.
    """

    batches: Callable[[World], Iterator[tuple[range, Tensor]]]
    made_with: dict[str, Any]


def score_and_record(logdir: Path, images: Scored, scoring: Scoring, metrics: Sequence[Metric], world: World) -> None:
    """Score the images; the main process prints the figures and appends them to `snn_eval.txt`."""
    made_with, real = images.made_with, scoring.real

    def real_batches(world: World) -> Iterator[tuple[range, Tensor]]:
        assert real is not None
        return dataset_batches(real.dataset, real.count, world)

    shared = None if real is None else real_batches
    scores = measure(metrics, scoring.extractor, images.batches, shared, world)
    stats = scoring.stats
    known = {"reference_count": stats.count} if stats is not None else {"reference": None, "reference_count": None}
    made_with = made_with | known
    if not world.main:
        return
    append_result(logdir / RESULTS, scores | made_with | {"processes": world.size, "date": timestamp()})
    figures = ", ".join(f"{k} {show(v)}" for k, v in scores.items() if isinstance(v, float))
    context = f", {scores['extractor']}" if scoring.extractor is not None else ""
    context += f", against {made_with['reference']}" if scoring.stats is not None else ""
    print(f"{figures} ({counted(scores['count'], 'image')}{context})")
    if made_with.get("time_steps"):
        steps, calls = made_with["time_steps"], made_with["sampler_steps"]
        timed = made_with.get("time_steps_per_call")
        carried = "" if timed is None else f" from rest, in the mean of all {timed:.3g}"
        print(f"latency: {steps} time steps per network call{carried}, {counted(calls, 'call')} per image")
    if "spikes_per_call" in made_with:
        calls = counted(made_with["sampler_steps"], "call")
        print(
            f"carried: {made_with['spikes_per_call']:,.0f} spikes per image and network call; "
            f"{made_with['restarts_per_image']:g} of {calls} per image began from rest"
        )
    for note in scores["notes"]:
        print(f"note: {note}")


def score_data(folder: RunFolder, dataset: ImageDataset, count: int, scoring: Scoring, world: World) -> int:
    """Score real images of the data set: what a perfect generator would be expected to reach with as many images."""
    count = min(count, len(dataset))
    require_spread(count)
    metrics = scoring.made(count, dataset.channels, dataset.img_size, world.device)
    folder.begin(world)
    made_with: dict[str, Any] = {"network": f"real images ({dataset.name}, {dataset.split})", "spiking": None}
    made_with |= {"image_size": dataset.img_size.stored, "reference": scoring.stats_name}
    scored = Scored(lambda world: dataset_batches(dataset, count, world), made_with)
    score_and_record(folder.path, scored, scoring, metrics, world)
    return 0


def shared_batches(count: int, world: World) -> Sequence[range]:
    """This process's share of the batches that 0..count−1 are scored in; which they are depends on `count` alone."""
    return world.share([range(s, min(s + SCORE_BATCH, count)) for s in range(0, count, SCORE_BATCH)])


def dataset_batches(dataset: ImageDataset, count: int, world: World) -> Iterator[tuple[range, Tensor]]:
    """This process's share of the first `count` images, uint8 [B, C, H, W], each batch with its indices."""
    for indices in shared_batches(count, world):
        yield indices, torch.stack([dataset[i] for i in indices])


def folder_name(made_with: dict) -> str:
    """Readable and unambiguous enough; `settings.json` inside the folder holds the rest."""
    return f"{_described(made_with)}_{made_with['checkpoint'][:8]}"


def picture_name(made_with: dict) -> str:
    """As readable, and different for all settings: nothing beside a picture says the rest."""
    return f"{_described(made_with)}_{_digest(made_with)}"


def _digest(made_with: dict) -> str:
    return content_hash(made_with).removeprefix("sha256:")[:8]


def _described(made_with: dict) -> str:
    spiking = made_with["spiking"]
    mode = "ann" if spiking is None else f"{made_with['network']}_{spiking['schedule']}"
    if direct := made_with["direct"]:
        mode = f"{made_with['arch']}{'_tsm' if direct['tsm'] else ''}_{direct['spike_steps']}steps"
        mode += "" if direct["threshold"] == 1 else f"_threshold{direct['threshold']:g}"
    if spiking and spiking["schedule"] == "stream":
        mode += f"_{spiking['stream_norm']}_settle{spiking['settle_steps']}"
        mode += f"_burst{spiking['burst']}" if spiking["burst"] > 1 else ""
        mode += ("" if spiking["signed"] else "_unsigned") + (
            "_reference" if spiking["if_neuron"] == "reference" else ""
        )
    sampler = f"{made_with['sampler']}{made_with['sampler_steps']}"
    options = made_with["sampler_options"] | ({"eta": made_with["eta"]} if made_with["eta"] else {})
    sampler += "".join(f"_{name}{value}" for name, value in options.items())
    weights = "" if made_with["weights"] == "ema" else f"_{made_with['weights']}"
    return f"{mode}{weights}_{sampler}_seed{made_with['seed']}"


def generate_missing(folder: Path, generation: Generation, config: EvalConfig) -> None:
    """Images 0..num_images−1 that are not in `folder` yet, saved batch by batch; each process saves its own."""
    sample, world = generation.sample, generation.world
    listed = sorted(set(range(config.num_images)) - existing_indices(folder)) if world.main else []
    missing = json.loads(world.from_main(json.dumps(listed)))  # others may see a shared folder late
    if missing:
        net = place(generation.source.net, world.device).eval()
        if world.main:
            drawn = f"{counted(len(missing), 'image')} to draw by {sample.sampler} on {world.device}"
            print(f"{folder}: {parameters_of(net)}, {drawn}")
        label = f"images → {folder.name}"
        batches = generate_batches(
            net,
            sample,
            missing,
            config.batch_size,
            label=label,
            world=world,
            given=Given(generation.statistics),
            hooks=Hooks(on_spikes=partial(keep_spikes, folder) if sample.carry else None),
        )
        with ImageWriter(folder) as writer:
            for indices, images in batches:
                writer.add(images, indices)
    world.wait()


def image_batches(folder: Path, count: int, world: World = ALONE) -> Iterator[tuple[range, Tensor]]:
    """This process's share of images 0..count−1 of `folder`, uint8 [B, C, H, W], each batch with its indices.

    They are found by their names. Raises UserError if one is missing.
    """
    for indices in shared_batches(count, world):
        yield indices, read_images([image_path(folder, i) for i in indices], like=image_path(folder, 0))


def write_grid(path: Path, folder: Path, count: int, nrow: int) -> None:
    """One picture of the first `count` images of `folder`."""
    save_grid(torch.cat([batch for _, batch in image_batches(folder, count)]), path, nrow)


def make_stats(
    path: Path,
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    num_images: int,
    world: World = ALONE,
) -> int:
    """Write the statistics of the first `num_images` images of a data set to `path`."""
    count = min(num_images, len(dataset))
    require_spread(count)
    batches = (images for _, images in dataset_batches(dataset, count, world))
    hidden = None if world.main else True  # None: where there is no terminal
    bar = tqdm(batches, total=len(shared_batches(count, world)), desc="statistics", leave=False, disable=hidden)
    gathered = gather_stats(bar, extractor, progress=False, world=world)
    if world.main:
        keep_stats(path, gathered, dataset, count, extractor.name)
    return 0
