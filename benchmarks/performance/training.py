"""One training step: quantization-aware against fp32, and ours against a plain loop."""

from __future__ import annotations

from functools import partial

import torch

from ann2snn.config import FULL_PRECISION, DiffusionConfig, TrainConfig
from ann2snn.distributed.runtime import computes_bfloat16
from ann2snn.distributed.world import World
from ann2snn.nets import UNet
from ann2snn.training.trainer import Computing, Trainer

from .networks import SEED, config_of
from .plain import PlainLoop
from .results import Bench, Case, Section

OURS, QAT, PLAIN = "fp32 ANN, our trainer", "2-bit ANN, our trainer", "fp32 ANN, plain loop"
APOT = "2-bit ANN, 4-bit APoT weights, our trainer"
AMP, QAT_AMP = f"{OURS}, --amp", f"{QAT}, --amp"


def make_trainer(bench: Bench, bits: int, images: torch.Tensor, amp: bool = False, **options: object) -> Trainer:
    """Our training loop as the scripts set it up on this device. options: other fields of `UNetConfig`."""
    train = TrainConfig(batch_size=bench.plan.train_batch, dropout=0.1, seed=SEED)
    config = config_of(bench, bench.plan.wide[0], bits, **options)
    trainer = Trainer(config, DiffusionConfig(), train, World(bench.device), Computing(amp))
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
    shape = (bench.plan.train_batch, config.in_channels, *config.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def training(bench: Bench) -> Section:
    """All loops in the same rounds. The plain loop is compared with our quickest."""
    images = make_images(bench)
    plain = make_plain(bench)
    jobs = {PLAIN: lambda: plain.step(images)}
    networks = {OURS: (FULL_PRECISION, {}), QAT: (2, {}), APOT: (2, {"weight_bits": 4})}
    if computes_bfloat16(bench.device):
        networks |= {AMP: (FULL_PRECISION, {"amp": True}), QAT_AMP: (2, {"amp": True})}
    for name, (bits, options) in networks.items():
        jobs[name] = partial(make_trainer(bench, bits, images, **options).train_step, images)
    times = bench.time(jobs)
    ch, batch = bench.plan.wide[0], bench.plan.train_batch
    rows = [[name, *times.row(name, OURS), batch / times.spread(name).median] for name in jobs]
    label = f"ch {ch}, batch {batch}"
    cases = {
        "qat_step": [Case.of(label, times.ratio(QAT, OURS))],
        "train_step": [Case.of(label, times.ratio(PLAIN, AMP if AMP in jobs else OURS))],
    }
    header = ["step", "ms (quartiles)", "over our fp32 step", "images/s"]
    return Section(f"One training step, {label}", header, rows, cases)
