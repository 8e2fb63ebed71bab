"""Convert a trained network, measure what that cost, and show images of both from the same noise."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..config import AUTO, SampleConfig, SpikingConfig
from ..convert import GapReport, SpikingDenoiser, convert, measure_gap
from ..io import checkpoint
from ..io.atomic import write_text
from ..io.images import save_grid
from ..nets import UNet
from ..probe import sampler_states
from ..report.tables import gap_table
from ..runtime import place
from ..sampling import generate_all

CONVERTED = "converted_snn.pt"
GAP_FILE = "gap.json"
GAP_TIMES = 4  # diffusion times at which the gap is measured


def run(
    logdir: Path,
    source: checkpoint.Loaded,
    spiking: SpikingConfig,
    sample: SampleConfig,
    device: torch.device,
    *,
    grid_images: int,
    gap_images: int,
    batch_size: int,
) -> int:
    """Write `converted_snn.pt`, `gap.json` and `images/` to `logdir`; print the gap table. Returns the exit code."""
    ann: UNet = place(source.net, device)
    snn = convert(ann, spiking)
    checkpoint.save(
        logdir / CONVERTED, checkpoint.snn_payload(snn, stage="converted", source=source.hash, step=source.step)
    )
    print(f"{logdir / CONVERTED}: {ann.config.bits} bits, T = {snn.clock.spike_steps} time steps, {spiking.schedule}")

    if gap_images:
        reports = gap_reports(ann, snn, spiking, gap_images, sample.seed)
        write_gap(logdir / GAP_FILE, reports, gap_images, depth=snn.depth)
        print_gap(reports, gap_images)
    if grid_images:
        write_grids(logdir, ann, snn, sample, grid_images, batch_size)
    return 0


def gap_reports(ann: UNet, snn: SpikingDenoiser, spiking: SpikingConfig, images: int, seed: int) -> list[GapReport]:
    """Gap under layer_sync, under stream without settling, and (cumulative norm) under stream with auto settling."""
    stream = replace(spiking, schedule="stream", settle_steps=0)
    modes = [replace(spiking, schedule="layer_sync", settle_steps=0), stream]
    if spiking.stream_norm == "cumulative":
        modes.append(replace(stream, settle_steps=AUTO))
    if spiking not in modes:
        modes.append(spiking)
    return gaps_under(ann, snn, modes, images, seed)


def gaps_under(ann: UNet, snn: SpikingDenoiser, modes: list[SpikingConfig], images: int, seed: int) -> list[GapReport]:
    """Gap of `snn` run in each of `modes`, in float64, on states of the ANN's sampling path."""
    ann, snn = copy.deepcopy(ann).double(), copy.deepcopy(snn).double()
    x, t = sampler_states(ann, images, GAP_TIMES, seed)
    return [measure_gap(ann, snn, x, t, mode) for mode in modes]


def write_gap(path: Path, reports: list[GapReport], images: int, **extra: object) -> None:
    """The gap table as JSON, with how it was measured."""
    content = {"images": images, "times": GAP_TIMES, "dtype": "float64", "inputs": "states of the ANN's DDIM path"}
    write_text(path, json.dumps(content | extra | {"reports": [r.to_dict() for r in reports]}, indent=1) + "\n")


def print_gap(reports: list[GapReport], images: int) -> None:
    """The table, and what its errors are relative to."""
    print(gap_table(reports))
    print(
        "error: relative L2 of the time-averaged output against the quantized ANN, in float64, on "
        f"{images} images at {GAP_TIMES} times of the ANN's own sampling path"
    )


def grid_name(net: nn.Module) -> str:
    """`images/SDDPM_T{T}.png` for a spiking network, `images/ANN.png` for an ANN."""
    return f"images/SDDPM_T{net.clock.spike_steps}.png" if isinstance(net, SpikingDenoiser) else "images/ANN.png"


def write_grids(
    logdir: Path, ann: UNet, snn: SpikingDenoiser, sample: SampleConfig, count: int, batch_size: int
) -> None:
    """`images/SDDPM_T{T}.png` and `images/ANN.png`, from the same noise."""
    nrow = max(1, math.isqrt(count))
    for net in (snn, ann):
        path = logdir / grid_name(net)
        save_grid(generate_all(net, sample, count, batch_size), path, nrow)
        print(f"{path}: {count} images, {sample.sampler}, {sample.calls(net.diffusion)} network calls")
