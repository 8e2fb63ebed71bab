"""What a training is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..config import DiffusionConfig, SampleConfig, TrainConfig
from ..data import ImageDataset
from ..distributed.world import World
from ..latent import Autoencoder
from ..nets.architecture import Network, NetworkConfig
from ..run.folder import RunFolder
from ..training.state import Initial


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps; 0 is never.

    score: denoiser → named figures, for `eval_step`. score_settings: what the figures depend on, by name, besides
    the network and the way it is sampled.
    resident: whether the training images are kept on the device, see `loading.home_of`.
    wandb: project at Weights & Biases that gets the log too.
    power_ema_step: of the snapshots of power-function averages; None: a 32nd of all steps.
    """

    sample_step: int
    save_step: int
    log_step: int
    sample_size: int
    num_workers: int = 0
    resident: str = "auto"
    eval_step: int = 0
    score: Callable[[Network], dict[str, float]] | None = None
    score_settings: Mapping[str, object] = field(default_factory=dict)
    wandb: str | None = None
    power_ema_step: int | None = None


@dataclass(frozen=True)
class Training:
    """Which network is trained on what and how, by whom, and where to.

    sample: how the sample grids and the scores on the way are made, and whether training multiplies in TF32.
    autoencoder: where `dataset` holds its latents; it decodes what the network makes.
    """

    folder: RunFolder
    dataset: ImageDataset
    network: NetworkConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    schedule: Schedule
    world: World
    autoencoder: Autoencoder | None = None


@dataclass(frozen=True)
class Options:
    """How a run of a training begins and computes.

    resume: continue what the folder holds; otherwise it must hold no checkpoint. amp: under bfloat16 autocast.
    recompute: activations are computed again instead of kept, of networks that can.
    initial: what a new run begins with, and one that is continued must have; fresh weights otherwise.
    """

    resume: bool = True
    amp: bool = False
    recompute: bool = False
    initial: Initial | None = None


AS_USUAL = Options()
