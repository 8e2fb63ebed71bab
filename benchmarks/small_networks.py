"""Small networks, trained and judged alike: 16x16, the shipped pictures, one way to score them.

Loss: mean squared error of the prediction of the noise, on test pictures at fixed times and noise. Distance: Fréchet's,
of samples, on EfficientNet-Lite0 features, which is not the FID.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import ann2snn
from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.data import load_dataset, to_model_range
from ann2snn.diffusion import VP
from ann2snn.diffusion.loss import squared_error
from ann2snn.distributed.world import ALONE
from ann2snn.files.atomic import write_text
from ann2snn.metrics.extractors import make_extractor
from ann2snn.metrics.frechet import FeatureStatistics, frechet_distance
from ann2snn.run.tables import text_table
from ann2snn.training.trainer import Trainer
from benchmarks.settling import environment

SHAPE = {"in_channels": 1, "image_size": 16, "ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.0}
TEST_IMAGES, REAL_IMAGES, CHUNK = 512, 2048, 64
SCORED = {"extractor": "lite0", "resolution": 96, "sampler": "ddim", "sampler_steps": 20}
SETTINGS = {"batch_size": 32, "lr": 1e-3, "lr_decay": "cosine", "warmup": 50, "ema_decay": 0.99}


@functools.cache
def pictures(*, train: bool) -> Tensor:
    """The shipped ones, uint8 [N, 1, 16, 16]."""
    return load_dataset("fashion_mnist_10k", "", 16, train=train).images


def network(**chosen: object) -> UNetConfig:
    return UNetConfig(norm_groups=4, spike_driven=True, **SHAPE, **chosen)


def trained(config: UNetConfig, steps: int, begin: dict[str, Tensor] | None = None) -> nn.Module:
    """The averaged network after so many steps. begin: the weights it starts with, and scales of its activations."""
    images = pictures(train=True)
    trainer = Trainer(config, DiffusionConfig(), TrainConfig(total_steps=max(1, steps), **SETTINGS), ALONE)
    batches = torch.randint(len(images), (steps, SETTINGS["batch_size"]), generator=torch.Generator().manual_seed(0))
    if begin is None:
        trainer.initialize_activations(images[batches[0]])
    else:
        trainer.net.load_state_dict(begin)
        trainer.ema.load_state_dict(begin)
    for batch in batches:
        trainer.train_step(images[batch])
    return trainer.ema.eval()


@torch.no_grad()
def held_back_loss(net: nn.Module) -> float:
    """On test pictures, each at a time and with noise of its own, the same for every network."""
    images, generator = pictures(train=False)[:TEST_IMAGES], torch.Generator().manual_seed(1)
    t = torch.randint(net.diffusion.diffusion_steps, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    calls = zip(*(value.split(CHUNK) for value in (to_model_range(images), t, noise)), strict=True)
    errors = [squared_error(net, VP(net.diffusion), *call) for call in calls]
    return float(torch.cat(errors).mean())


def statistics(images: Tensor) -> FeatureStatistics:
    extractor = make_extractor(SCORED["extractor"], resolution=SCORED["resolution"])
    features = FeatureStatistics(extractor.dim)
    for part in images.split(CHUNK):
        features.update(extractor(part).features)
    return features


def real_statistics() -> tuple:
    """Mean, covariance and count of real pictures' features."""
    return statistics(pictures(train=True)[:REAL_IMAGES]).compute()


def distance(images: Tensor, real: tuple) -> float:
    """Of images uint8 [N, 1, 16, 16] to the real ones."""
    mu, sigma, _ = statistics(images).compute()
    return float(frechet_distance(mu, sigma, *real[:2]))


def samples(net: nn.Module, count: int) -> Tensor:
    return ann2snn.sample(net, count, sampler=SCORED["sampler"], steps=SCORED["sampler_steps"], progress=False)


def publish(about: dict[str, object], rows: list[dict[str, object]], out: Path | None) -> None:
    """Print the table, and keep it with how it was measured."""
    about = about | {"real_images": REAL_IMAGES, "seed": 0} | SCORED | SETTINGS | SHAPE | environment()
    cells = [[f"{value:.4g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    print(text_table(list(rows[0]), cells))
    if out is not None:
        write_text(out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
