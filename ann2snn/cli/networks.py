"""The network a stage works on: read from the file the flags name, and compared with the flags given beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints import checkpoint, shipped
from ..checkpoints.payload import check_variance
from ..checkpoints.power import Built, power_average
from ..checkpoints.seal import content_hash
from ..config import SpikingConfig, require
from ..convert import SpikingNetwork
from ..convert.to_snn import check_convertible
from ..distributed.runtime import place
from ..distributed.world import World, current
from ..errors import UserError
from ..latent import attach
from ..nets.architecture import NetworkConfig
from ..nets.direct import DirectDenoiser
from ..nets.sddpm import SDDPM
from ..run.folder import BEST, CHECKPOINT, CONVERTED, SNAPSHOTS, TRAINED, RunFolder
from ..training.initial import check_source, quantized_state
from ..training.state import Initial
from . import flags, latents
from .build import spiking_config
from .flags import FLAGS
from .settings import check_has, expected_fields


def given_path() -> Path | None:
    """--eval_model_path: a file, a folder, or the name of a network that ships with the package."""
    return shipped.path_of(FLAGS.eval_model_path) if FLAGS.eval_model_path else None


def load_checkpoint(path: Path, weights: str = "ema", free: tuple[str, ...] = ()) -> checkpoint.Loaded:
    """Read a network; any flag given by hand, but those `free` to differ, must agree with it. Raises UserError."""
    return _checked(checkpoint.load(path, weights=weights, **_given_settings(free)), free)


def load_average(path: Path, sigma_rel: float) -> Built:
    """Build the power-function average of that width; flags given by hand must agree. Raises UserError."""
    built = power_average(path, sigma_rel, path.parent / SNAPSHOTS, **_given_settings())
    _checked(built.loaded)
    return built


def _given_settings(free: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the flags given by hand say of a network, but those `free` to differ."""
    return {
        "bit": int(FLAGS.bit) if flags.given("bit") and "bit" not in free else None,
        "image_size": FLAGS.img_size if flags.given("img_size") else None,
        "spike_steps": FLAGS.timestep if flags.given("timestep") and "timestep" not in free else None,
        "expected": {field: given for field, given in expected_fields().items() if given[0] not in free},
    }


def _checked(loaded: checkpoint.Loaded, free: tuple[str, ...] = ()) -> checkpoint.Loaded:
    check_has(loaded.unet.config, loaded.path, free)
    attach(loaded.net, latents.given_autoencoder(), loaded.path)
    latents.check_unclipped(loaded.unet.diffusion)
    if flags.given("var_type"):  # a choice of the sampler, not of the network
        loaded.unet.diffusion = replace(loaded.unet.diffusion, var_type=FLAGS.var_type)
        if "var_type" not in free:
            check_variance(loaded.unet.config, loaded.unet.diffusion)
    return loaded


def _chosen(path: Path) -> checkpoint.Loaded:
    """The network of a file; with --sigma_rel the average of that width. Raises UserError."""
    if FLAGS.sigma_rel is None:
        return load_checkpoint(path)
    built = load_average(path, FLAGS.sigma_rel)
    if current().main:
        print(built)
    return built.loaded


def load_initial() -> checkpoint.Loaded | None:
    """The network that --init_from names, a file, a folder or a shipped one; None without the flag. Raises UserError.

    Flags given by hand must agree with it, but for --bit and --var_type, which may be others.
    """
    if FLAGS.init_from is None:
        return None
    path = shipped.path_of(FLAGS.init_from)
    loaded = load_checkpoint(path, free=("bit", "var_type"))
    check_source(loaded.net, path)
    return loaded


def initial_weights(source: checkpoint.Loaded, network: NetworkConfig, world: World) -> Initial:
    """The weights of `source`, quantized as `network` is when they are asked for."""
    net = source.unconverted

    def weights() -> dict:
        return quantized_state(place(net, world.device), network, FLAGS.seed)

    return Initial(source.path, content_hash(net.state_dict()), weights)


def load_convertible() -> checkpoint.Loaded:
    """The quantized network: --eval_model_path, else what training left in --logdir.

    Raises UserError for one without a spiking counterpart.
    """
    path = given_path()
    if path is None or (path.name == CONVERTED and not path.exists()):  # published flagfiles name what comes out of it
        path = Path(FLAGS.logdir) / CHECKPOINT
    loaded = _chosen(path)
    net = loaded.unconverted
    if isinstance(net, DirectDenoiser):
        raise UserError(f"{path} is a network with --arch={net.config.arch}: it is spiking already")
    check_convertible(net)
    return loaded


def load_network() -> checkpoint.Loaded:
    """The network to evaluate, run as the flags say: --eval_model_path, else the one in --logdir.

    In a folder without a converted network, that is the training's weights that scored best, or the newest; with
    --sigma_rel an average of the training's weights.
    """
    folder = Path(FLAGS.logdir)
    default_paths = [folder / CONVERTED, folder / TRAINED, RunFolder(folder).best_or_last()]
    if FLAGS.sigma_rel is not None:
        default_paths = [folder / CHECKPOINT]
    candidates = [path] if (path := given_path()) else default_paths
    path = next((p for p in candidates if p.exists()), candidates[0])
    loaded = _chosen(path)
    if path.name == BEST and not FLAGS.eval_model_path:
        print(f"{path}: the weights that scored best, of step {loaded.step}; --eval_model_path takes others")
    if isinstance(loaded.net, SpikingNetwork):
        loaded.net.spiking = spiking_config(loaded.net.spiking)
        loaded.net.set_spike_chunk(FLAGS.spike_chunk)
    else:
        _check_unconverted(path)
    if FLAGS.threshold is not None:
        if not isinstance(loaded.net, DirectDenoiser):
            raise UserError(f"--threshold={FLAGS.threshold}: {path} is no directly trained spiking network")
        loaded.net.set_threshold(FLAGS.threshold)
    return loaded


def _check_unconverted(path: Path) -> None:
    """Raise UserError for flags that say how a converted network runs, their defaults apart."""
    for name, plain in SpikingConfig().to_dict().items():
        value = FLAGS[name].value
        same = value is None or (name != "schedule" and str(value) == str(plain))
        require(same, f"--{name}={value}: {path} is not a converted network (SNN_conversion.py makes one)")


def load_pretrained() -> tuple[checkpoint.Loaded, int]:
    """The SDDPM that SDM is made of: --eval_model_path, else the best or last of --logdir; and the time steps of SDM.

    Raises UserError.
    """
    path = given_path() or RunFolder(Path(FLAGS.logdir)).best_or_last()
    loaded = load_checkpoint(path, free=("timestep", "tsm"))
    if not isinstance(loaded.net, SDDPM):
        raise UserError(
            f"--ft_method=tsm: needs a network with --arch=sddpm; {path} is one with --arch={loaded.net.config.arch}"
        )
    config = loaded.net.config
    require(not config.tsm, f"--ft_method=tsm: {path} has a factor per time step already; give the SDDPM")
    require(
        FLAGS.threshold in (None, config.threshold),
        f"--threshold={FLAGS.threshold}: {path} was trained with {config.threshold}, and is fine-tuned with it",
    )
    return loaded, config.spike_steps if FLAGS.timestep is None else FLAGS.timestep
