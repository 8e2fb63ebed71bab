"""What each way of running or tuning the spiking network of one run folder is worth, in one table.

    python -m benchmarks.stream_gap --logdir logs/fashion_mnist_2bit --out docs/figures/stream_gap_2bit.json

Rows: the quantized ANN; `layer_sync`; `stream` signed and unsigned, with 0 to 3 and automatic settling steps, with
both norms; and every fine-tuned network in the folder. Columns: the gap of the prediction to the quantized ANN's,
and the error against the true noise that both were trained to predict, on noised test images in float64; spikes,
latency, energy; the score that evaluate.py recorded for that network. A second table shows how far the ANN's own
prediction moves when its input moves a little: the yardstick for every gap.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from ann2snn.checkpoints import checkpoint
from ann2snn.config import AUTO, SpikingConfig
from ann2snn.convert import SpikingNetwork, convert, relative_error
from ann2snn.cost import FP32, INT8, count_operations
from ann2snn.data import load_dataset, to_model_range
from ann2snn.diffusion import VP
from ann2snn.files.atomic import write_text
from ann2snn.nets import UNet
from ann2snn.report.summary import COMPARABLE
from ann2snn.run.folder import RESULTS
from ann2snn.run.lines import read_log
from ann2snn.run.tables import text_table

COST_IMAGES = 4
PERTURBATIONS = (1e-5, 1e-4, 1e-3, 1e-2)
HEADER = ["network", "gap", "noise error", "spikes", "steps", "fp32 µJ", "+memory µJ", "int8 µJ", "+memory µJ", "FD"]


def test_inputs(ann: UNet, dataset: str, data_dir: str, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, noise) in float64 of the first test images, t evenly spread over the diffusion steps."""
    data = load_dataset(dataset, data_dir, ann.image_size, train=False)
    x_0 = to_model_range(torch.stack([data[i] for i in range(images)])).double()
    process = VP(ann.diffusion)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = ((torch.arange(images) + 0.5) / images * process.diffusion_steps).long()
    t = t[torch.randperm(images, generator=torch.Generator().manual_seed(1))]
    return process.diffuse(x_0, t, noise), t, noise


def candidates(ann: UNet, source: str, logdir: Path) -> Iterator[tuple[str, SpikingNetwork, str]]:
    """(name, network set to run as named, hash of its checkpoint)."""
    stream = SpikingConfig("stream")
    converted = logdir / "converted_snn.pt"
    digest = checkpoint.load(converted).hash if converted.exists() else ""
    yield "layer_sync", convert(ann, SpikingConfig()), digest
    for signed in (True, False):
        name = "stream" if signed else "stream, unsigned"
        yield name, convert(ann, dataclasses.replace(stream, signed=signed)), digest
    for settle in (1, 2, 3, AUTO):
        yield f"stream, settle {settle}", convert(ann, dataclasses.replace(stream, settle_steps=settle)), digest
    for burst in sorted({2, 3, 2**ann.config.bits - 1}):
        yield f"stream, burst {burst}", convert(ann, dataclasses.replace(stream, burst=burst)), digest
    yield "stream, norm per_step", convert(ann, dataclasses.replace(stream, stream_norm="per_step")), digest
    for path in sorted(logdir.glob("SNN_*_ft*/model_best.pt")):
        tuned = checkpoint.load(path)
        sign = "" if tuned.net.spiking.signed else ", unsigned"
        yield f"stream{sign}, tuned: {path.parent.name.partition('_ft')[2].strip('_')}", tuned.net.double(), tuned.hash


@torch.no_grad()
def predict(net: UNet | SpikingNetwork, x: Tensor, t: Tensor, batch_size: int = 16) -> Tensor:
    return torch.cat([net(x[i : i + batch_size], t[i : i + batch_size]) for i in range(0, len(x), batch_size)])


def scores(logdir: Path) -> dict[tuple[str, str], float]:
    """(checkpoint, spiking as JSON) → the Fréchet distance recorded last, all measured in one way.

    Of several samplers, image counts or statistics, the way in which most networks were scored counts, of equals the
    newest; a line says what is left out.
    """
    ways: dict[str, dict[tuple[str, str], float]] = {}
    for line in read_log(logdir / RESULTS):
        figures = [(k, v) for k, v in line.items() if k.startswith(("FD", "FID")) and isinstance(v, float)]
        if figures and "network" in line:
            way = json.dumps({"score": figures[0][0]} | {name: line.get(name) for name in COMPARABLE}, sort_keys=True)
            newest = ways.pop(way, {})  # so that the newest comes last
            ways[way] = newest | {(line.get("checkpoint", ""), _key(line.get("spiking"))): figures[0][1]}
    if not ways:
        return {}
    chosen = max(reversed(ways), key=lambda way: len(ways[way]))
    left_out = sum(len(rows) for way, rows in ways.items() if way != chosen)
    if left_out:
        print(f"scores: {chosen}; {left_out} measured in other ways are left out")
    return ways[chosen]


def _key(spiking: dict | None) -> str:
    """One text for equal ways of running, whether or not an older line spells out every setting."""
    return json.dumps(SpikingConfig.completed(spiking), sort_keys=True)


def measure(logdir: Path, data_dir: str, images: int) -> dict:
    """All rows, and the sensitivity of the ANN, as plain values. Raises UserError for what cannot be read."""
    source = checkpoint.load(logdir / "ckpt.pt")
    ann, recorded = source.net.double(), scores(logdir)
    dataset = source.raw["config"]["train"]["dataset_type"]
    x, t, noise = test_inputs(ann, dataset, data_dir, images)
    target = predict(ann, x, t)
    cost = count_operations(ann, x[:COST_IMAGES], t[:COST_IMAGES]).energies()["quantized"]
    energies = [cost[p.name] for p in (FP32, INT8)]
    fd = recorded.get((source.hash, _key(None)))
    rows = [["quantized ANN", 0.0, relative_error(target, noise), None, None, *_micro(energies), fd]]
    for name, net, digest in candidates(ann, source.hash, logdir):
        output = predict(net, x, t)
        report = count_operations(net, x[:COST_IMAGES], t[:COST_IMAGES])
        counted = report.energies()["counted"]
        fd = recorded.get((digest, _key(net.spiking.to_dict())))
        errors = [relative_error(output, target), relative_error(output, noise)]
        steps = [round(report.total("spikes")), report.latency_steps]
        rows.append([name, *errors, *steps, *_micro([counted[p.name] for p in (FP32, INT8)]), fd])
        print(text_table(HEADER, rows[-1:]).splitlines()[-1], flush=True)
    nudge = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nudge *= x.norm() / nudge.norm()
    moved = [(size, relative_error(predict(ann, x + size * nudge, t), target)) for size in PERTURBATIONS]
    about = {"bits": ann.config.bits, "step": source.step, "images": images, "data": f"{dataset}, test split"}
    about |= {"logdir": logdir.name, "date": str(date.today()), "torch": torch.__version__, "machine": machine()}
    return {"about": about, "header": HEADER, "rows": rows, "sensitivity": moved}


def _micro(energies: list) -> list[float]:
    """Arithmetic alone, and with memory, of each price list, in µJ."""
    return [value / 1e6 for e in energies for value in (e.compute, e.total)]


def machine() -> str:
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", type=Path, required=True, help="run folder with ckpt.pt")
    parser.add_argument("--data_dir", default="./data", help="where the run's data set is")
    parser.add_argument("--images", type=int, default=64, help="test images")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    result = measure(args.logdir, args.data_dir, args.images)
    print("\n", result["about"], sep="")
    print(text_table(result["header"], result["rows"]))
    print(text_table(["input moved by", "prediction moves by"], result["sensitivity"]))
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
