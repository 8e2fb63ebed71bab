"""A run folder as the stages leave it, made by hand: two blocks, five modes, every kind of file."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ann2snn.config import SpikingConfig
from ann2snn.convert.raster import Raster
from ann2snn.report.collect import collect
from ann2snn.report.writer import write
from ann2snn.run.paths import SamplingPaths, save_paths
from ann2snn.run.rasters import save_rasters

LAYER_SYNC = {
    "schedule": "layer_sync",
    "signed": True,
    "stream_norm": "cumulative",
    "if_neuron": "bounded",
    "settle_steps": 0,
}
STREAM = LAYER_SYNC | {"schedule": "stream"}
AUTO = STREAM | {"settle_steps": "auto"}
INPUTS = (
    "log.jsonl", "flagfile.txt", "gap.json", "SNN_2bit_ft/gap.json", "SNN_2bit_ft", "snn_eval.txt", "raster.npz",
    "generated", "real.png", "sample", "images",
)  # fmt: skip


def written_report(logdir: Path) -> Path:
    """Write the page of a run; its path."""
    return write(collect(logdir))


def report(label: str, spiking: dict, error: float, spikes: float, settle: int = 0) -> dict:
    """What `GapReport.to_dict` gives."""
    rows = [("head", error / 4, None, None), ("downblocks.0", error / 2, 0.1, 0.0), ("prediction", error, 0.2, 0.1)]
    names = ("block", "error", "firing_rate", "negative_share")
    blocks = [dict(zip(names, row, strict=True)) for row in rows]
    return {
        "label": label,
        "spiking": spiking,
        "spikes_per_image": spikes,
        "settle_steps": settle,
        "blocks": blocks,
    }


def gap_file(*reports: dict, images: int = 8) -> dict:
    return {"images": images, "times": 4, "dtype": "float64", "inputs": "x", "reports": list(reports)}


def score_line(network: str, spiking: dict | None, fd: float, **changes: object) -> dict:
    """A line as `evaluate` writes it."""
    line = {
        "FD_efficientnet_lite0": fd,
        "count": 5000,
        "extractor": "efficientnet-lite0-1280@64px",
        "notes": ["a note"],
        "checkpoint": f"{network:0<16}",
        "step": 30,
        "network": network,
        "bits": 2,
        "weights": "ema",
        "spiking": spiking,
        "sampler": "ddim",
        "sampler_steps": 50,
        "eta": 0.0,
        "clip_x0": True,
        "var_type": "fixedlarge",
        "seed": 0,
        "reference": "stats.npz",
        "reference_count": 10000,
        "image_size": 8,
        "device": "cpu",
        "date": "2030-01-02 03:04 UTC",
    }
    return line | changes


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, entries: list[dict]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_picture(path: Path, size: tuple[int, int], value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), value, np.uint8)).save(path)


def write_image_set(logdir: Path, network: str, spiking: dict | None, indices, **changes: object) -> Path:
    """Image i is grey of value 10·i."""
    folder = logdir / "generated" / f"{network}_{spiking['schedule'] if spiking else 'ann'}"
    for index in indices:
        write_picture(folder / f"{index:06}.png", (8, 8), 10 * index)
    line = score_line(network, spiking, 0.0, **changes)
    names = (
        "checkpoint",
        "network",
        "bits",
        "weights",
        "spiking",
        "sampler",
        "sampler_steps",
        "eta",
        "clip_x0",
        "seed",
    )
    write_json(folder / "settings.json", {name: line[name] for name in names})
    return folder


def write_rasters(path: Path, names: tuple[str, ...] = ("head.1", "tail.1")) -> None:
    """Four neurons of each layer over T = 3 steps; under stream +auto two more."""
    events = torch.zeros(len(names), 4, 5, dtype=torch.int8)
    events[:, 1, 2], events[:, 2, 3] = 1, -1
    neurons = torch.arange(4).expand(len(names), 4).clone()
    modes = ((SpikingConfig(**LAYER_SYNC), events[..., :3]), (SpikingConfig(**AUTO), events))
    save_rasters(path, [Raster(mode, names, neurons, shown, 3, 473.0) for mode, shown in modes])


def with_times(report: dict, *factors: float) -> dict:
    """The same, with the error at each of two times: the error itself times the factors."""
    blocks = [block | {"errors_at": [block["error"] * factor for factor in factors]} for block in report["blocks"]]
    return report | {"times": [900 - 800 * i for i in range(len(factors))], "blocks": blocks}


def write_paths(path: Path, frames: int = 5, apart: int = 0) -> None:
    """Frame f of image n is grey of value 10·f + 100·n; the spiking network's is brighter by `apart`."""
    values = 10 * np.arange(frames)[:, None] + 100 * np.arange(2)
    ann = np.broadcast_to(values[:, :, None, None, None], (frames, 2, 1, 8, 8)).astype(np.uint8)
    how = {"sampler": "ddim", "sampler_steps": frames - 1, "eta": 0.0, "seed": 7, "carry": True, "spiking": LAYER_SYNC}
    times = np.linspace(999, 0, frames - 1)
    save_paths(path, SamplingPaths(ann, (ann + apart).astype(np.uint8), times, how))


def account(label: str, spiking: dict | None, energy: float, steps: int | None = None, carried: bool = False) -> dict:
    """A report of cost.json; energy: µJ of int8 arithmetic, of which everything else is a multiple."""
    prices = {"compute_pj": 1e6 * energy, "total_pj": 1e7 * energy, "total_by_event_pj": 1e8 * energy}
    ways = ("counted", "all_mac") if spiking else ("fp32", "quantized", "quantized_skipping_zeros")
    return {
        "label": label,
        "spiking": spiking,
        "bits": 2,
        "latency_steps": steps,
        "latency_steps_delayed": steps,
        "carried": carried,
        "layers": [],
        "totals": {"spikes": 1e3, "ac": 1e6, "mac": 1e5, "dense_mac": 1e7},
        "energy": {way: {"fp32": prices, "int8": prices, "int8_state16": prices} for way in ways},
        "spikes_by_call": [1000.0, 100.0 if carried else 900.0] if spiking else [],
    }


def write_costs(folder: Path) -> None:
    """`cost.json` of an ANN and two ways of running, and `carry.json` of carried levels."""
    ann, sync = account("ANN", None, 5.0), account("converted layer_sync", LAYER_SYNC, 4.0, 54)
    content = {"images": 1, "times": 4, "calls_per_image": 2}
    stream = account("converted stream", STREAM, 9.0, 3)
    write_json(folder / "cost.json", content | {"reports": [ann, sync, stream]})
    carried = account("converted layer_sync carried", LAYER_SYNC, 1.0, 54, carried=True)
    more = {"errors": [0.0, 0.0], "calls": 2, "sampler": "ddim"}
    write_json(folder / "carry.json", content | more | {"reports": [ann, sync, carried]})


def write_run(folder: Path) -> None:
    """Every input of a report."""
    folder.mkdir()
    write_lines(folder / "log.jsonl", [{"stage": "train", "step": i, "loss": 1 / (i + 1)} for i in range(30)])
    (folder / "flagfile.txt").write_text("--bit=2.0\n--lr=0.0002\n")
    write_json(
        folder / "gap.json",
        gap_file(
            report("layer_sync", LAYER_SYNC, 0.0, 1111.0),
            report("stream", STREAM, 0.0654, 2222.0),
            report("stream +auto", AUTO, 3.2e-16, 3333.0, settle=2),
        ),
    )
    converted, tuned = (
        report("converted stream", STREAM, 0.0654, 2222.0),
        report("fine-tuned stream", STREAM, 0.0321, 4444),
    )
    write_json(folder / "SNN_2bit_ft/gap.json", gap_file(converted, tuned))
    blocks = [{"block": f"downblocks.{i}", "gap_before": 0.05, "gap_after": 0.04 - 0.01 * i} for i in range(2)]
    finetune = {"identity": {"source": "trained000000000"}, "prediction_gap": [0.07, 0.06, 0.05], "blocks": blocks}
    write_json(folder / "SNN_2bit_ft" / "finetune.json", finetune)
    write_rasters(folder / "raster.npz")
    modes = [("trained", None, 21.0), ("converted", LAYER_SYNC, 22.0), ("converted", STREAM, 33.0)]
    modes += [("finetuned", STREAM, 24.0)]
    write_lines(folder / "snn_eval.txt", [score_line(*mode) for mode in modes])
    for network, spiking, _ in modes:
        write_image_set(folder, network, spiking, range(4))
    write_picture(folder / "real.png", (42, 22), 99)
    write_picture(folder / "sample" / "20.png", (42, 22))
    write_picture(folder / "images" / "ANN.png", (42, 22))
