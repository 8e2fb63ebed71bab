"""What batch norm costs a quantized U-Net in place of group norm: both trained alike, small, on the shipped images.

    python -m benchmarks.norms --steps 120 --images 64 --out docs/figures/norms.json

Loss: mean squared error of the averaged weights' prediction of the noise, on test images at fixed times and noise.
Distance: Fréchet's, of samples, on EfficientNet-Lite0 features, which is not the FID. Gap: of the converted network
under layer_sync. Seconds: of the training. Prints a table; --out keeps it with how it was measured, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

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

NORMS = ("group", "batch")
SHAPE = {"in_channels": 1, "image_size": 16, "ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.0}
TEST_IMAGES, REAL_IMAGES, CHUNK = 512, 512, 64
SCORED = {"extractor": "lite0", "resolution": 96, "sampler": "ddim", "sampler_steps": 10}


def trained(norm: str, bits: int, steps: int, images: Tensor) -> tuple[Trainer, float]:
    """A network of that norm after so many steps on images uint8 [N, 1, 16, 16], and the seconds they took."""
    network = UNetConfig(bits=bits, norm=norm, norm_groups=4, spike_driven=True, **SHAPE)
    settings = TrainConfig(total_steps=steps, batch_size=32, lr=1e-3, warmup=steps // 10, ema_decay=0.99)
    trainer = Trainer(network, DiffusionConfig(), settings, ALONE)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(len(images), (steps, settings.batch_size), generator=generator)
    trainer.initialize_activations(images[batches[0]])
    began = time.perf_counter()
    for batch in batches:
        trainer.train_step(images[batch])
    return trainer, time.perf_counter() - began


@torch.no_grad()
def held_back_loss(net: torch.nn.Module, images: Tensor) -> float:
    """On images uint8 [N, C, H, W], each at a time and with noise of its own, the same for every network."""
    process, generator = VP(net.diffusion), torch.Generator().manual_seed(1)
    t = torch.randint(net.diffusion.diffusion_steps, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    call = (to_model_range(images), t, noise)
    errors = [squared_error(net, process, *part) for part in zip(*(value.split(CHUNK) for value in call), strict=True)]
    return float(torch.cat(errors).mean())


def statistics(images: Tensor) -> FeatureStatistics:
    extractor = make_extractor(SCORED["extractor"], resolution=SCORED["resolution"])
    found = FeatureStatistics(extractor.dim)
    for part in images.split(CHUNK):
        found.update(extractor(part).features)
    return found


def measured(norm: str, bits: int, steps: int, scored: int, real: tuple) -> dict[str, object]:
    """One row of the table. real: mean, covariance and count of the real images' features."""
    images = {train: load_dataset("fashion_mnist_10k", "", 16, train=train).images for train in (True, False)}
    trainer, seconds = trained(norm, bits, steps, images[True])
    net = trainer.ema.eval()
    x = to_model_range(images[False][:4]).double()
    exact = net.double()
    gap = ann2snn.gap(exact, ann2snn.convert(exact), x, torch.tensor([50, 300, 600, 950])).prediction.error
    net = net.float()
    samples = ann2snn.sample(net, scored, sampler=SCORED["sampler"], steps=SCORED["sampler_steps"])
    mu, sigma, _ = statistics(samples).compute()
    return {
        "norm": norm,
        "loss": held_back_loss(net, images[False][:TEST_IMAGES]),
        "distance": float(frechet_distance(mu, sigma, *real[:2])),
        "gap": gap,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each network")
    parser.add_argument("--bit", type=int, default=4, help="activation bits")
    parser.add_argument("--images", type=int, default=256, help="samples that are scored")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    asked = parser.parse_args()
    images = load_dataset("fashion_mnist_10k", "", 16, train=True).images
    real = statistics(images[:REAL_IMAGES]).compute()
    rows = [measured(norm, asked.bit, asked.steps, asked.images, real) for norm in NORMS]
    about = {"steps": asked.steps, "bits": asked.bit, "images": asked.images, "real_images": REAL_IMAGES, "seed": 0}
    about |= SCORED | SHAPE | environment()
    print(
        text_table(list(rows[0]), [[f"{v:.4g}" if isinstance(v, float) else v for v in row.values()] for row in rows])
    )
    if asked.out is not None:
        write_text(asked.out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
