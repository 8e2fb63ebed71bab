"""One training step: quantization-aware against fp32, and ours against a plain loop."""

from __future__ import annotations

import torch

from ann2snn.config import FULL_PRECISION, DiffusionConfig, TrainConfig
from ann2snn.nets import UNet
from ann2snn.stages.trainer import Trainer
from ann2snn.world import World

from .networks import SEED, config_of
from .plain import PlainLoop
from .results import Bench, Case, Section

OURS, QAT, PLAIN = "fp32 ANN, our trainer", "2-bit ANN, our trainer", "fp32 ANN, plain loop"


def make_trainer(bench: Bench, bits: int, images: torch.Tensor) -> Trainer:
    """Our training loop as the scripts set it up on this device."""
    train = TrainConfig(batch_size=bench.plan.train_batch, dropout=0.1, seed=SEED)
    config = config_of(bench, bench.plan.wide[0], bits)
    trainer = Trainer(config, DiffusionConfig(), train, World(bench.device), amp=bench.device.type == "cuda")
    trainer.net.train()
    trainer.initialize_activations(images)
    return trainer


def make_plain(bench: Bench) -> PlainLoop:
    torch.manual_seed(SEED)
    net = UNet(config_of(bench, bench.plan.wide[0], FULL_PRECISION)).to(bench.device)
    return PlainLoop(net.train(), DiffusionConfig(), TrainConfig())


def make_images(bench: Bench) -> torch.Tensor:
    """uint8 noise [train_batch, C, H, W] on the CPU, where batches come from."""
    config = config_of(bench, bench.plan.wide[0])
    shape = (bench.plan.train_batch, config.in_channels, config.image_size, config.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def training(bench: Bench) -> Section:
    """Three loops in the same rounds."""
    images = make_images(bench)
    qat, ours = make_trainer(bench, 2, images), make_trainer(bench, FULL_PRECISION, images)
    plain = make_plain(bench)
    jobs = {
        OURS: lambda: ours.train_step(images),
        QAT: lambda: qat.train_step(images),
        PLAIN: lambda: plain.step(images),
    }
    times = bench.time(jobs)
    ch, batch = bench.plan.wide[0], bench.plan.train_batch
    rows = [[name, *times.row(name, OURS), batch / times.spread(name).median] for name in jobs]
    label = f"ch {ch}, batch {batch}"
    cases = {
        "qat_step": [Case.of(label, times.ratio(QAT, OURS))],
        "train_step": [Case.of(label, times.ratio(PLAIN, OURS))],
    }
    header = ["step", "ms (quartiles)", "over our fp32 step", "images/s"]
    return Section(f"One training step, {label}", header, rows, cases)
