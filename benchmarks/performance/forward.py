"""One network call: `layer_sync` on spike counts against the fp32 ANN, and cost against T, batch and width."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ann2snn.config import SpikingConfig

from .networks import inputs, make_ann, make_snn, window
from .results import Bench, Case, Section

SYNC, STREAM = SpikingConfig("layer_sync"), SpikingConfig("stream")
TIMED = ["ms (quartiles)", "over the fp32 ANN"]
NO_ONE = "T = 1 is a network of 1 bit, which does not exist here: bits are 2 to 8"


def call(net: nn.Module, x: Tensor, t: Tensor) -> Callable[[], Tensor]:
    """A job: one call without gradients."""

    def job() -> Tensor:
        with torch.inference_mode():
            return net(x, t)

    return job


def forward(bench: Bench) -> Section:
    """The target's table: every T in one run, at the wide network."""
    ch, batch = bench.plan.wide
    ann = make_ann(bench, ch)
    x, t = inputs(bench, ann, batch)
    jobs = {"fp32 ANN": call(ann, x, t), "2-bit ANN": call(make_ann(bench, ch, 2), x, t)}
    labels = {f"layer_sync, T = {window(bits)}": bits for bits in bench.plan.levels}
    jobs |= {label: call(make_snn(bench, ch, bits, SYNC), x, t) for label, bits in labels.items()}
    times = bench.time(jobs)
    rows = [[name, *times.row(name, "fp32 ANN")] for name in jobs]
    rows.insert(2, ["layer_sync, T = 1", "n/a", "n/a"])
    cases = [Case.of(label.removeprefix("layer_sync, "), times.ratio(label, "fp32 ANN")) for label in labels]
    title = f"One network call, ch {ch}, batch {batch}"
    return Section(title, ["network", *TIMED], rows, {"layer_sync_time": cases}, NO_ONE)


def against_steps(bench: Bench) -> Section:
    """Cost against T: flat under `layer_sync`, proportional under `stream`."""
    ch, batch = bench.plan.narrow[0], bench.plan.sweep_batch
    ann = make_ann(bench, ch)
    x, t = inputs(bench, ann, batch)
    rows: list[list[object]] = [["1", "n/a", "n/a", "n/a", "n/a", "n/a"]]
    for bits in bench.plan.sweep_bits:
        jobs = {
            "ann": call(ann, x, t),
            "sync": call(make_snn(bench, ch, bits, SYNC), x, t),
            "stream": call(make_snn(bench, ch, bits, STREAM), x, t),
        }
        times = bench.time(jobs)
        rows.append([str(window(bits)), *times.row("sync", "ann"), *times.row("stream", "ann")])
        rows[-1].append(str(times.ratio("stream", "ann", window(bits))))
    header = ["T", *(f"{which}: {what}" for which in ("layer_sync", "stream") for what in TIMED)]
    title = f"Cost against T, ch {ch}, batch {batch}"
    return Section(title, [*header, "stream over T × ANN"], rows, note=NO_ONE)


def against_batch(bench: Bench) -> Section:
    """Milliseconds an image at 2 bits."""
    ch = bench.plan.narrow[0]
    return _sweep(bench, f"Cost against the batch, ch {ch}, T = 3", "batch", [(ch, n, n) for n in bench.plan.batches])


def against_width(bench: Bench) -> Section:
    """Milliseconds an image at 2 bits."""
    batch = bench.plan.wide[1]
    sizes = [(ch, batch, ch) for ch in bench.plan.widths]
    return _sweep(bench, f"Cost against the width, batch {batch}, T = 3", "ch", sizes)


def _sweep(bench: Bench, title: str, what: str, sizes: list[tuple[int, int, int]]) -> Section:
    """sizes: (ch, batch, what the row is called)."""
    rows = []
    for ch, batch, name in sizes:
        nets = {"ann": make_ann(bench, ch)}
        nets |= {"sync": make_snn(bench, ch, 2, SYNC), "stream": make_snn(bench, ch, 2, STREAM)}
        x, t = inputs(bench, nets["ann"], batch)
        times = bench.time({label: call(net, x, t) for label, net in nets.items()})
        per_image = 1e3 * times.spread("ann").median / batch
        ratios = [str(times.ratio(label, "ann")) for label in ("sync", "stream")]
        rows.append([str(name), *times.row("ann"), per_image, *ratios])
    header = [what, "fp32 ANN: ms (quartiles)", "ms an image", "layer_sync over the ANN", "stream over the ANN"]
    return Section(title, header, rows)
