"""The way from noise to image of the quantized network and of its spiking network, frame by frame beside each other."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..run.paths import SamplingPaths
from ..run.tables import counted, first_of
from .elements import details, section, table
from .modes import Mode
from .parse import MALFORMED, clean, integer, parse_spiking
from .svg import escape

AMPLIFIED = 8  # how much larger the difference is shown
MOST_SIDE = 96  # pixels of an image on the page
MOST_BYTES = 450_000  # of all strips: long paths of large images show fewer frames
FEWEST_FRAMES = 8
SIDE, LIVE_SIDE = 48, 128  # page pixels of an image's width: beside others, and alone


@dataclass(frozen=True)
class Strip:
    """The frames of one network side by side. png: F frames wide."""

    title: str
    note: str
    png: bytes


def denoising(paths: SamplingPaths | None) -> str:
    """The section; empty without paths."""
    if paths is None:
        return ""
    frames = np.arange(len(paths.ann))
    while True:
        strips = [
            Strip("quantized ANN", "", _strip(paths.ann[frames])),
            Strip("SNN", snn_label(paths.how), _strip(paths.snn[frames])),
            Strip("difference", f"× {AMPLIFIED}; black where both agree", _strip(difference(paths)[frames])),
        ]
        if sum(len(strip.png) for strip in strips) <= MOST_BYTES or len(frames) <= FEWEST_FRAMES:
            break
        frames = frames[np.linspace(0, len(frames) - 1, max(FEWEST_FRAMES, len(frames) // 2)).round().astype(int)]
    labels = [frame_label(index, paths) for index in frames.tolist()]
    differences = np.abs(paths.ann.astype(np.int16) - paths.snn)[frames]
    rows = [
        [escape(label), f"{part.max()}", f"{part.mean():.3g}"] for label, part in zip(labels, differences, strict=True)
    ]
    exact = (
        "the two agree in every one"
        if not differences.max()
        else f"they differ by up to {differences.max()} of 255 grey levels"
    )
    images = first_of(paths.ann.shape[1], "image")
    return section(
        "From noise to image",
        f"<p>The {images} of both networks, {escape(how_sampled(paths.how))}, from the same noise: "
        f"{counted(len(frames), 'state')} of the sampler; {exact}.</p>",
        _films(strips, labels, paths.ann.shape[1]),
        details("difference of each state", table(["state", "largest", "mean"], rows, range(1, 3))),
    )


def difference(paths: SamplingPaths) -> np.ndarray:
    """AMPLIFIED·|SNN − ANN| of the 8-bit pictures, uint8 [F, N, C, H, W]."""
    distances = np.abs(paths.snn.astype(np.int16) - paths.ann)
    return (AMPLIFIED * distances).clip(0, 255).astype(np.uint8)


def frame_label(index: int, paths: SamplingPaths) -> str:
    """Such as "noise, t = 999", "t = 473" or "image"."""
    if index == len(paths.times):
        return "image"
    return f"{'noise, ' if index == 0 else ''}t = {paths.times[index]:g}"


def snn_label(settings: dict) -> str:
    """How the spiking network ran, such as "layer_sync, levels carried"."""
    try:
        schedule = Mode("converted", parse_spiking(settings["spiking"])).schedule_label
    except MALFORMED:
        schedule = ""
    return ", ".join(
        part for part in (clean(schedule, 80), "levels carried" if settings.get("carry") is True else "") if part
    )


def how_sampled(settings: dict) -> str:
    """Such as "ddim, 20 steps, eta 0.0, seed 0"."""
    parts = [clean(settings["sampler"], 20)] if "sampler" in settings else []
    if "sampler_steps" in settings:
        parts.append(counted(integer(settings["sampler_steps"]), "step"))
    parts += [f"{name} {clean(settings[name], 20)}" for name in ("eta", "seed") if name in settings]
    return ", ".join(parts)


def _films(strips: list[Strip], labels: list[str], images: int) -> str:
    """A row for each strip; the page's script turns the rows into windows of one frame, and adds the controls."""
    films = "".join(
        f'<figure class="film"><figcaption><b>{escape(strip.title)}</b><small>{escape(strip.note)}</small></figcaption>'
        f'<div class="window"><img alt="{escape(strip.title)}, {len(labels)} states" '
        f'src="data:image/png;base64,{base64.b64encode(strip.png).decode("ascii")}"></div></figure>'
        for strip in strips
    )
    sizes = f"--frames:{len(labels)};--images:{images};--side:{SIDE}px;--live:{LIVE_SIDE}px"
    listed = escape("|".join(labels))
    return (
        f'<div class="path" data-labels="{listed}" style="{sizes}"><div class="scroll films" tabindex="0">{films}</div>'
        f'<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(labels) - 1}" value="{len(labels) - 1}" step="1" '
        f'aria-label="state on the way from noise to image"><output></output></div></div>'
    )


def _strip(frames: np.ndarray) -> bytes:
    """uint8 [F, N, C, H, W] → PNG of F frames side by side, in each N images; large ones are made smaller."""
    rows = frames.transpose(0, 1, 3, 4, 2)  # [F, N, H, W, C]
    wide = np.concatenate(list(rows.reshape(-1, *rows.shape[2:])), axis=1)
    sheet = Image.fromarray(wide[..., 0] if wide.shape[2] == 1 else wide)
    height, width = frames.shape[-2:]
    if (larger := max(height, width)) > MOST_SIDE:
        height, width = (max(1, side * MOST_SIDE // larger) for side in (height, width))
        sheet = sheet.resize((len(frames) * frames.shape[1] * width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
