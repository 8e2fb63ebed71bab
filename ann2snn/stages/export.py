"""The converted network as a folder to hand on, with a card of what was measured of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import checkpoint, folders
from ..config import require
from ..convert import SpikingNetwork
from ..diffusion.process import image_shape
from ..nets.architecture import Network
from ..report.collect import Run, collect
from ..report.costs import cost_table
from ..report.parse import clean, sampling_text
from ..run.tables import markdown_table, show

NOTHING = "–"  # in a cell


def check_target(folder: Path, logdir: Path) -> None:
    """Raise UserError where `export` would find something in the way, that of the run itself included."""
    folders.check_free(folder)
    same = os.path.realpath(folder) == os.path.realpath(logdir)
    require(not same, f"--export={folder}: is --logdir itself; name a new folder")


def export(
    folder: Path,
    snn: SpikingNetwork,
    source: checkpoint.Loaded,
    logdir: Path,
    hashes: Sequence[str],
    measured: bool,
) -> None:
    """Write the network and its card, from what `logdir` holds, to a new folder, which `load` reads back.

    source: the network it was converted from. hashes: of the files of both, whose scores count. measured: whether gap
    and cost are of this conversion. Raises UserError, and then leaves nothing.
    """
    run = collect(logdir)
    payload = checkpoint.payload_from(snn, source, stage="converted")
    folders.write(folder, payload, card=card(folder.name, snn, run, hashes, measured))


def card(name: str, snn: SpikingNetwork, run: Run, hashes: Sequence[str], measured: bool) -> str:
    """Markdown; what was not measured has no line."""
    net = snn.net
    assert isinstance(net, Network)  # or `payload_of` refuses it
    channels, height, width = image_shape(net)
    latents = {"latents": f"{net.image_size.height}×{net.image_size.width}, {net.in_channels} channels"}
    latents |= {"autoencoder": net.diffusion.autoencoder}
    about = {
        "architecture": net.config.arch,
        "images": f"{height}×{width}, {channels} channels",
        "activation bits": net.config.bits,
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}",
        "schedule": snn.spiking.label,
        "time steps of a window": snn.clock.spike_steps,
        "process": f"{net.diffusion.process}, {net.diffusion.diffusion_steps} steps",
        "prediction": net.diffusion.mean_type,
    } | (latents if net.diffusion.autoencoder else {})
    parts = [
        f"# {clean(name, 80)}\n\nA spiking denoiser, converted from a quantized network by ann2snn.",
        markdown_table(["setting", "value"], about.items()),
        f"```python\nimport ann2snn\n\nsnn = ann2snn.load({clean(name, 80)!r})\nimages = ann2snn.sample(snn, 4)\n```",
    ]
    if measured and run.gaps:
        gaps = [(report.label, show(report.prediction.error)) for report in run.gaps.reports.values()]
        parts += [
            "## Gap",
            "Relative L2 error of the prediction against the quantized network, in float64.",
            markdown_table(["schedule", "error"], gaps),
        ]
    if measured and run.costs:
        header, rows, _ = cost_table(run.costs)
        parts += ["## Cost", "Per image and network call.", markdown_table(*_filled(header, rows))]
    scores = [score for score in run.scores if score.line.get("checkpoint") in hashes]
    if scores:
        score_rows = [
            (
                score.mode.label,
                str(score.count or NOTHING),
                sampling_text(score.line),
                score.text("extractor"),
                ", ".join(f"{key} {show(value)}" for key, value in score.values.items()),
            )
            for score in scores
        ]
        columns = ["network", "images", "sampler", "features", "scores"]
        parts += ["## Scores", markdown_table(*_filled(columns, score_rows))]
    return "\n\n".join(parts) + "\n"


def _filled(header: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """The columns that say something in every row."""
    kept = [i for i in range(len(header)) if all(str(row[i]) not in ("", NOTHING) for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
