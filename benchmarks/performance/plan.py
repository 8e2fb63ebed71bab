"""Sizes of a benchmark run: what is measured is always the same, how large it is depends on the plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

REPETITIONS = 7  # the least that a median is taken of


@dataclass(frozen=True)
class Plan:
    """Sizes of one run.

    wide, narrow: (ch, images a batch) of the two networks of the targets; the targets' thresholds are stated for
    ch 128 and ch 32. unet: the other fields of `UNetConfig`. levels: bits that `layer_sync` is timed at;
    stream_bits: bits of the two `stream` targets. sweep_bits, batches, widths: of the tables. train_batch: images a
    training step. sampler_steps, sampler_images: of the table of samplers. ddim_images: of the GPU's DDIM-50 row, in
    batches of ddim_batch. memory_bits, memory_rows: `layer_sync` networks, and other rows, whose peak memory is
    measured. scan_batch: images of the neuron scan that peers are compared on. warmup: rounds that are not counted.
    """

    name: str = "full"
    repetitions: int = REPETITIONS
    warmup: int = 1
    wide: tuple[int, int] = (128, 4)
    narrow: tuple[int, int] = (32, 16)
    unet: dict = field(default_factory=dict)
    levels: tuple[int, ...] = (2, 3, 4, 6, 8)
    stream_bits: tuple[int, ...] = (2, 3, 4)
    settle_bits: tuple[int, ...] = (2, 3)
    sweep_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    sweep_batch: int = 1
    batches: tuple[int, ...] = (1, 4, 16, 64)
    widths: tuple[int, ...] = (32, 64, 128)
    train_batch: int = 4
    sampler_steps: int = 5
    sampler_images: int = 4
    ddim_images: int = 50_000
    ddim_batch: int = 500
    memory_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    memory_rows: tuple[str, ...] = ("stream", "masks", "trainer", "plain")
    scan_batch: int = 4

    def on(self, device: torch.device) -> Plan:
        """The plan on a device: a GPU is given batches that fill it, and more rounds to warm up."""
        if device.type == "cpu":
            return self
        grown = {"wide": (self.wide[0], 16 * self.wide[1]), "narrow": (self.narrow[0], 16 * self.narrow[1])}
        return dataclasses.replace(self, **grown, train_batch=32 * self.train_batch, warmup=max(5, self.warmup))


FULL = Plan()
QUICK = Plan(
    name="quick",
    wide=(128, 1),
    narrow=(32, 2),
    unet={"num_res_blocks": 1},
    levels=(2, 4, 8),
    stream_bits=(2, 3),
    settle_bits=(2,),
    sweep_bits=(2, 3, 4),
    batches=(1, 4),
    widths=(32, 64),
    train_batch=1,
    sampler_steps=4,
    sampler_images=2,
    ddim_images=500,
    memory_bits=(8,),
    memory_rows=("stream",),
    scan_batch=1,
)
