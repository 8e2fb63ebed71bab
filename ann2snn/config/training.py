"""How a denoiser is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError
from .checks import check_accumulate, check_number, check_seed, make_plain, require
from .classes import CLASS_DROPOUT

DATASET_TYPES = ("fashion_mnist_10k", "cifar10", "mnist", "fashion_mnist", "celeba", "folder")
LOSS_TYPES = ("mse", "kl", "scl")
LOSS_WEIGHTS = ("none", "min_snr", "p2")
FT_METHODS = ("proxy", "bptt", "tsm")
FT_INPUTS = ("data", "sampler")
RESIDENT = ("auto", "on", "off")
SEARCHES = ("loss", "score")
#: σ_rel of a power-function average; 1/√12 = 0.2887 is the mean of all steps alike.
LEAST_WIDTH, MOST_WIDTH = 0.005, 0.28
#: Flags that `--resume_with` may name; a stage that has no such setting passes over it.
RESUME_WITH = (
    "lr", "lr_decay", "grad_clip", "warmup", "total_steps", "batch_size", "ema_decay", "ema_warmup", "dropout",
    "loss_type", "loss_weight", "min_snr_gamma", "image_loss_weight", "spike_loss_weight",
    "reconstruction_loss_weight", "act_init", "flip", "amp",
    "seed", "dataset_type", "data_dir", "ft_steps", "ft_batch_size", "ft_neuron_lr", "ft_cache", "ft_inputs",
    "sampler", "sampler_steps", "eta", "clip_x0", "skip_type", "sampler_order", "denoise", "corrector",
    "grid_power", "var_type", "accumulate", "tf32", "class_dropout", "guidance", "class_label", "ddim_epsilon",
    "lower_order_final",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Optimization of a denoiser; stored in `ckpt.pt`, and compared with the flags when a run is resumed.

    batch_size: images per step over all processes. accumulate: parts in which a process goes through its share.
    loss_weight: how much each diffusion time counts, see `diffusion.loss_weights`, which min_snr_gamma is of.
    *_loss_weight: of the terms of loss_type "scl", see `diffusion.synaptic`.
    ema_warmup: the averaged weights follow faster at first, see `diffusion.ema`.
    power_ema: widths σ_rel of the averages that are kept beside them, see `diffusion.power_ema`.
    class_dropout: share of the images whose class is kept back, of a class-conditional training.
    resume_with: flags whose value may differ from that of the run that is resumed; not stored.
    """

    dataset_type: str = "cifar10"
    lr: float = 2e-4
    lr_decay: str = "none"
    grad_clip: float = 1.0
    total_steps: int = 800_000
    warmup: int = 5000
    batch_size: int = 128
    accumulate: int = 1
    loss_type: str = "mse"
    loss_weight: str = "none"
    min_snr_gamma: float = 5.0
    image_loss_weight: float = 1.0
    spike_loss_weight: float = 0.0
    reconstruction_loss_weight: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    power_ema: tuple[float, ...] = ()
    act_init: str = "calibrate"
    dropout: float = 0.1
    flip: bool | None = None
    class_dropout: float = CLASS_DROPOUT
    seed: int = 0
    resume_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "resume_with", check_resume_with(self.resume_with))
        object.__setattr__(self, "power_ema", check_power_ema(self.power_ema))
        require(self.lr > 0, f"--lr={self.lr}: must be positive")
        require(self.grad_clip > 0, f"--grad_clip={self.grad_clip}: must be positive")
        require(self.total_steps >= 0, f"--total_steps={self.total_steps}: use at least 1, or 0 with --init_from")
        require(self.warmup >= 0, f"--warmup={self.warmup}: use 0 or more")
        require(self.batch_size >= 1, f"--batch_size={self.batch_size}: use at least 1")
        check_accumulate(self.accumulate)
        require(self.loss_type in LOSS_TYPES, f"--loss_type={self.loss_type}: use one of {', '.join(LOSS_TYPES)}")
        self._check_loss_weight()
        weights = (self.image_loss_weight, self.spike_loss_weight, self.reconstruction_loss_weight)
        require(min(weights) >= 0 < max(weights), "the loss weights must not be negative, nor all be 0")
        require(0 <= self.ema_decay < 1, f"--ema_decay={self.ema_decay}: use a value in [0, 1)")
        check_seed(self.seed)
        share = check_number(self.class_dropout, "--class_dropout")
        require(0 <= share <= 1, f"--class_dropout={share}: use a share from 0 to 1")
        if self.act_init != "calibrate":
            require(_positive(self.act_init), f"--act_init={self.act_init}: use calibrate or a positive number")

    def _check_loss_weight(self) -> None:
        name, gamma = self.loss_weight, check_number(self.min_snr_gamma, "--min_snr_gamma")
        require(name in LOSS_WEIGHTS, f"--loss_weight={name}: use one of {', '.join(LOSS_WEIGHTS)}")
        require(gamma > 0, f"--min_snr_gamma={gamma}: must be positive")
        require(
            name == "none" or self.loss_type == "mse",
            f"--loss_weight={name}: only with --loss_type=mse, not {self.loss_type}",
        )

    def to_dict(self) -> dict:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "resume_with"}


def check_resume_with(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each; the flags of SDM's fine-tuning stand for those of training. Raises UserError."""
    names = tuple(dict.fromkeys(name.strip().removeprefix("--") for name in names))
    for name in names:
        require(name in RESUME_WITH, f"--resume_with={name}: may name {', '.join(RESUME_WITH)}")
    return names


def check_power_ema(widths: Iterable[float | str]) -> tuple[float, ...]:
    """The widths σ_rel in ascending order, once each. Raises UserError for what no power-function average has."""
    try:
        sorted_widths = sorted({float(width) for width in widths})
    except (TypeError, ValueError):
        raise UserError(f"--power_ema={widths}: give widths as 0.05,0.1") from None
    for width in sorted_widths:
        require(LEAST_WIDTH <= width <= MOST_WIDTH, f"--power_ema={width:g}: use {LEAST_WIDTH} to {MOST_WIDTH}")
    values = ",".join(map(str, sorted_widths))
    require(len(sorted_widths) <= 4, f"--power_ema={values}: at most 4 widths; two are enough")
    return tuple(sorted_widths)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
