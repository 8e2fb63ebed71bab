"""Composition root: from flags to the objects the stages work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import checkpoint
from ..config import (
    FULL_PRECISION,
    NO_CLASS,
    DiffusionConfig,
    SampleConfig,
    SpikingConfig,
    TrainConfig,
    UNetConfig,
    check_class_label,
    require,
)
from ..convert import SpikingNetwork
from ..data import ImageDataset, attributes_of, load_dataset
from ..diffusion.process import check_sampling, current_steps, decoded_size, image_channels, network_channels
from ..distributed.precision import set_tf32
from ..distributed.runtime import computes_bfloat16, computes_tf32, keep_freed_memory
from ..distributed.world import World, current, join
from ..errors import UserError
from ..files.atomic import file_hash
from ..generate import compiled
from ..generate.classes import classes_of, resolved
from ..generate.sampling import generate_batches
from ..hardware import GraphFile
from ..metrics.inception_score import usual_splits
from ..metrics.score import score_numbered
from ..nets.architecture import Network, NetworkConfig, asked_for_variance
from ..nets.attention_unet import AttentionUNetConfig
from ..run.folder import FLAGFILE, RunFolder
from ..run.tables import images_of
from ..stages import direct
from ..stages.evaluate import require_spread
from ..stages.finetune_run import FineTuneConfig
from ..stages.plan import Options, Schedule, Training
from ..training.initial import begun_from
from ..training.state import Initial
from ..training.trainer import synaptic_loss_of
from . import flags, latents
from .flags import FLAGS
from .scores import extractor_and_stats
from .settings import diffusion_config, effective_flags, network_config, written_flagfile


def world() -> World:
    """The processes that run this command, each on its device. Raises UserError."""
    keep_freed_memory()
    if FLAGS.num_threads:
        torch.set_num_threads(FLAGS.num_threads)
    compiled.enable(FLAGS.compile)
    joined = join(FLAGS.device)
    if FLAGS.amp and not computes_bfloat16(joined.device):
        FLAGS["amp"].value = False
        if joined.main:
            print("note: --amp: no bfloat16 arithmetic on this device; computing in float32")
    if FLAGS.tf32 and not computes_tf32(joined.device):
        FLAGS["tf32"].value = False
        if joined.main:
            print("note: --tf32: this device has no TF32; computing in float32")
    set_tf32(False)  # but where it is asked for, see there
    return joined


def run_folder(stage: str, source: checkpoint.Loaded | None = None, network: NetworkConfig | None = None) -> RunFolder:
    """The folder that the flags name, and the settings that a stage keeps in it when it begins.

    Those are the flags, their defaults overruled by what `source`, the network in use, was made with, and `network`,
    what it becomes. Training writes `flagfile.txt`, others `flagfile.{stage}.txt`.
    """
    name = FLAGFILE if stage == "train" else f"flagfile.{stage}.txt"
    return RunFolder(Path(FLAGS.logdir), name, written_flagfile(_decided_by(source, network) if source else {}))


def _decided_by(source: checkpoint.Loaded, network: NetworkConfig | None) -> dict[str, object]:
    net = source.unet
    spiking = source.net.spiking.to_dict() if isinstance(source.net, SpikingNetwork) else {}
    return effective_flags(network or net.config, net.diffusion, source.trained_on) | spiking


def dataset(train: bool = True) -> ImageDataset:
    """The data set the flags name. Raises UserError."""
    place = FLAGS.dataset_type, FLAGS.data_dir, FLAGS.img_size
    return _announced(load_dataset(*place, train=train, channels=FLAGS.channels, attributes=FLAGS.class_attributes))


def dataset_for(source: checkpoint.Loaded, train: bool = True) -> ImageDataset:
    """The images a checkpoint was trained on, or their test images: its own data set unless `--dataset_type` says
    otherwise."""
    name = FLAGS.dataset_type if flags.given("dataset_type") else source.trained_on or FLAGS.dataset_type
    net = source.net
    network_channels = image_channels(net)
    channels = network_channels if name == "folder" else None
    attributes = FLAGS.class_attributes
    if not attributes and name == "celeba":
        attributes = attributes_of(classes_of(net)[1])
    place = name, FLAGS.data_dir, decoded_size(net)
    images = load_dataset(*place, train=train, channels=channels, attributes=attributes)
    if images.channels != network_channels:
        raise UserError(
            f"{name} has {images.channels} image channels, the network of {source.path} {network_channels}: "
            "give the --dataset_type it was trained on"
        )
    if train and name == source.trained_on and current().main:
        _note_others(images, source)
    return _announced(images)


def _note_others(images: ImageDataset, source: checkpoint.Loaded) -> None:
    """Say so where images of the data set that a checkpoint was trained on are not those that it saw."""
    seen, net = source.training.get("data_dir"), source.net
    of_images = seen is not None and not net.diffusion.autoencoder  # else it saw latents
    if of_images and images.fingerprint(labels=classes_of(net)[0] > 0) != seen:
        print(f"note: {source.path} was trained on other images of --dataset_type={images.name}: see --data_dir")


def inputs_for(source: checkpoint.Loaded, device: torch.device, train: bool = True) -> ImageDataset:
    """What a network is trained on, or of its test images: `dataset_for`, or latents of it. Raises UserError."""
    return latents.encoded(dataset_for(source, train), source.net.autoencoder, device)


def _announced(images: ImageDataset) -> ImageDataset:
    """The images, after the main process has said which and how many they are."""
    if current().main:
        shape = f"{images.img_size.height}x{images.img_size.width}, {'grey' if images.channels == 1 else 'colour'}"
        print(f"data: {images_of(images)}, {shape}" + f"; {images.note}" * bool(images.note))
    return images


def of_class(images: ImageDataset, net: object = None) -> ImageDataset:
    """Those of --class_label, or all images without the flag. net: whose class it is too. Raises UserError."""
    label = check_class_label(FLAGS.class_label)
    if label in (None, NO_CLASS):
        return images
    if net is not None:
        images.check_classes(*classes_of(net))
    return images.of_class(label)


def nir_file() -> GraphFile | None:
    """Where the network is written as a graph, and at which diffusion time; None if nowhere. Raises UserError."""
    path, t = FLAGS.export_nir, FLAGS.nir_time
    require((path is None) == (t is None), "--export_nir and --nir_time: give both, the file and a diffusion time")
    require(path is not None or not FLAGS.fold_norms, "--fold_norms: only with --export_nir; drop it or add that")
    return None if path is None else GraphFile(Path(path), t, FLAGS.fold_norms)


def sample_config() -> SampleConfig:
    return SampleConfig(
        sampler=FLAGS.sampler,
        steps=FLAGS.sampler_steps,
        eta=FLAGS.eta,
        clip=FLAGS.clip_x0,
        seed=FLAGS.seed,
        skip=FLAGS.skip_type or "",
        order=FLAGS.sampler_order,
        denoise=FLAGS.denoise,
        corrector=FLAGS.corrector,
        grid_power=FLAGS.grid_power,
        amp=FLAGS.amp,
        tf32=FLAGS.tf32,
        ddim_epsilon=FLAGS.ddim_epsilon,
        carry=FLAGS.carry,
        carry_steps=FLAGS.carry_steps,
        guidance=FLAGS.guidance,
        class_label=FLAGS.class_label,
        lower_order_final=FLAGS.lower_order_final,
    )


def train_config() -> TrainConfig:
    fields: dict[str, Any] = {name: FLAGS[name].value for name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(**fields)
    message = f"--power_ema_step={FLAGS.power_ema_step}: only with --power_ema"
    require(bool(config.power_ema) or not flags.given("power_ema_step"), message)
    return config


def spiking_config(stored: SpikingConfig | None = None, **defaults: Any) -> SpikingConfig:
    """How the SNN runs: flags given by hand, over a checkpoint's own settings, over the stage's defaults."""
    base = stored or SpikingConfig(**defaults)
    given_fields = {name: FLAGS[name].value for name in base.to_dict() if FLAGS[name].value is not None}
    return base.changed(**given_fields)


def tsm_config(source: checkpoint.Loaded) -> TrainConfig:
    """How SDM is fine-tuned: the flags of fine-tuning where it has its own, those of training otherwise."""
    require(FLAGS.ft_steps >= 1, f"--ft_steps={FLAGS.ft_steps}: use at least 1")
    fields: dict[str, Any] = {"total_steps": FLAGS.ft_steps, "batch_size": FLAGS.ft_batch_size}
    if not flags.given("warmup"):
        fields["warmup"] = 0
    if source.trained_on and not flags.given("dataset_type"):
        fields["dataset_type"] = source.trained_on
    return replace(train_config(), **fields)


def training(world: World, check_trainable: Callable[[NetworkConfig, DiffusionConfig], None]) -> Training:
    """The training the flags ask for.

    Raises UserError; so does `check_trainable`, for what the script does not train.
    """
    require(FLAGS.init_from is None, "--init_from: only for ANN_train.py; drop it")
    require(FLAGS.total_steps != 0, "--total_steps=0: use at least 1, or 0 with --init_from")
    autoencoder = latents.given_autoencoder()
    diffusion, sample, train = diffusion_config(autoencoder), sample_config(), train_config()
    network = asked_for_variance(network_config(3, diffusion.downscale), diffusion)  # refuse bad flags before the data
    check_trainable(network, diffusion)
    latents.check_training(diffusion)
    check_sampling(diffusion, network.image_size, sample, spike_steps=current_steps(network))
    synaptic_loss_of(train, network)
    schedule = train_schedule(sample, world)
    images = latents.encoded(dataset(), autoencoder, world.device)
    network = network_config(network_channels(diffusion, images.channels), diffusion.downscale)
    network = told_classes(asked_for_variance(network, diffusion), images)
    sample = resolved(network, sample)
    plan = Training(run_folder("train"), images, network, diffusion, train, sample, schedule, world)
    return replace(plan, autoencoder=autoencoder)


def told_classes(network: NetworkConfig, images: ImageDataset) -> NetworkConfig:
    """The network, told the images' classes if --class_cond asks for it. Raises UserError where they have none."""
    for name in ("class_dropout", "class_attributes"):
        asked = f"--{name}={flags.written(FLAGS[name].value)}"
        require(FLAGS.class_cond or not flags.given(name), f"{asked}: only with --class_cond")
    if not FLAGS.class_cond:
        return network
    require(images.labels is not None, f"--class_cond: {images.unlabelled}")
    assert isinstance(network, UNetConfig | AttentionUNetConfig)  # others have no such flag
    return replace(network, num_classes=len(images.classes), class_names=images.classes)


def training_from(source: checkpoint.Loaded, world: World) -> Training:
    """The training the flags ask for, of the network of `source`, with its process. Raises UserError."""
    kept = source.unconverted.config
    bits = FLAGS.bit if flags.given("bit") or kept.bits == FULL_PRECISION else None
    dropout = FLAGS.dropout if flags.given("dropout") else None
    network = begun_from(kept, source.unconverted.diffusion, bits, dropout, source.path)
    images = inputs_for(source, world.device)
    if FLAGS.class_cond and not classes_of(network)[0]:
        network = told_classes(network, images)
    diffusion, sample = source.unconverted.diffusion, resolved(network, sample_config())
    latents.check_training(diffusion)
    check_sampling(diffusion, network.image_size, sample, spike_steps=current_steps(network))
    fields: dict[str, Any] = {"dropout": network.dropout}
    if source.trained_on and not flags.given("dataset_type"):
        fields["dataset_type"] = source.trained_on
    train, schedule = replace(train_config(), **fields), train_schedule(sample, world)
    folder = run_folder("train", source, network)
    plan = Training(folder, images, network, diffusion, train, sample, schedule, world)
    return replace(plan, autoencoder=source.net.autoencoder)


def tsm_training(source: checkpoint.Loaded, sample: SampleConfig, spike_steps: int, world: World) -> Training:
    """The training that makes SDM of the SDDPM of `source`. Raises UserError."""
    folder = direct.tsm_folder(run_folder("finetune", source), spike_steps, FLAGS.ft_name)
    net = source.unconverted
    made_of = (dataset_for(source), net.config, net.diffusion, tsm_config(source))
    return Training(folder, *made_of, sample, train_schedule(sample, world), world)


def train_options(initial: Initial | None = None) -> Options:
    """How the training begins and computes. initial: what a new run begins with."""
    return Options(FLAGS.resume, FLAGS.amp, FLAGS.recompute, initial)


def train_schedule(sample: SampleConfig, world: World) -> Schedule:
    """When a training saves, logs, samples and scores. Raises UserError."""
    score, score_settings = scorer(sample, world) if FLAGS.eval_step else (None, {})
    return Schedule(
        sample_step=FLAGS.sample_step,
        save_step=5000 if FLAGS.save_step is None else FLAGS.save_step,
        log_step=FLAGS.log_step,
        sample_size=FLAGS.sample_size,
        num_workers=FLAGS.num_workers,
        resident=FLAGS.resident,
        eval_step=FLAGS.eval_step,
        score=score,
        score_settings=score_settings,
        wandb=FLAGS.wandb,
        power_ema_step=FLAGS.power_ema_step,
    )


def scorer(sample: SampleConfig, world: World) -> tuple[Callable[[Network], dict[str, float]], dict]:
    """Denoiser → named figures on --num_images fresh images, which are not kept; and `Schedule.score_settings`.

    All processes of `world` must call it together; all get the figures. Raises UserError.
    """
    require_spread(FLAGS.num_images)
    features, stats = extractor_and_stats(world.device)
    # The statistics by their content: a path may come to name other ones, and a file may move.
    score_settings = {"images": FLAGS.num_images, "extractor": features.name, "statistics": file_hash(FLAGS.fid_cache)}

    def score(net: Network) -> dict[str, float]:
        count = FLAGS.num_images
        images = generate_batches(net, sample, range(count), FLAGS.batch_size, world=world)
        scores = score_numbered(images, features, stats, splits=usual_splits(count), total=count, world=world)
        return {name: value for name, value in scores.items() if isinstance(value, float)}

    return score, score_settings


def finetune_config() -> FineTuneConfig:
    require(FLAGS.lr_decay != "cooldown", "--lr_decay=cooldown: only for ANN_train.py; fine-tuning has none and cosine")
    return FineTuneConfig(
        steps=FLAGS.ft_steps,
        lr=FLAGS.lr,
        batch_size=FLAGS.ft_batch_size,
        save_step=2000 if FLAGS.save_step is None else FLAGS.save_step,
        sample_size=FLAGS.sample_size if FLAGS.sample_step else 0,
        resume=FLAGS.resume,
        seed=FLAGS.seed,
        method=FLAGS.ft_method,
        learn=tuple(FLAGS.ft_learn or ()),
        granularity=FLAGS.ft_granularity,
        neuron_lr=FLAGS.ft_neuron_lr,
        decay=FLAGS.lr_decay == "cosine",
        calibrate=FLAGS.ft_calibrate,
        cache=FLAGS.ft_cache,
        network_steps=FLAGS.ft_network_steps,
        inputs=FLAGS.ft_inputs,
        name=FLAGS.ft_name,
        spike_chunk=FLAGS.spike_chunk,
        accumulate=FLAGS.accumulate,
        resume_with=tuple(FLAGS.resume_with),
        gap_images=FLAGS.gap_images,
    )
