"""How images emerge from noise: the states on a sampler's path as one picture, and as an animation."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from ..config import require
from ..distributed.runtime import prepare_folder
from ..files.atomic import replacing

COLUMNS = 10
MOST_FRAMES = 64
FORMATS = ("webp", "gif")
SIDE = 64  # pixels that an image should take, in whole multiples of its own
HEADER, PADDING = 16, 2  # pixels: the line of labels, and the gap between images
FRAME_MS, LAST_MS = 80, 1600


class Trajectory:
    """Collects states uint8 [N, C, H, W] along a path of unknown length; keeps at most `most`, evenly spaced."""

    def __init__(self, most: int = MOST_FRAMES) -> None:
        self._states: list[Tensor] = []
        self.times: list[float] = []  # of the states kept
        self._stride, self._count, self._most = 1, 0, most

    def add(self, state: Tensor, time: float = math.nan) -> None:
        """The next state, in the order of the path, at a diffusion time."""
        if self._count % self._stride == 0:
            self._states.append(state.cpu())
            self.times.append(time)
        self._count += 1
        if len(self._states) == self._most:  # one place is left for the end
            self._states, self.times, self._stride = self._states[::2], self.times[::2], 2 * self._stride

    def frames(self, end: Tensor) -> Tensor:
        """The states kept, and the finished images after them: uint8 [frames, N, C, H, W]."""
        return torch.stack([*self._states, end.cpu()])


def columns(frames: int, most: int = COLUMNS) -> list[int]:
    """Indices of at most `most` of `frames` frames, evenly spaced, the first and the last among them."""
    if frames <= most:
        return list(range(frames))
    return [(i * (frames - 1) + (most - 1) // 2) // (most - 1) for i in range(most)]


def write_trajectory(frames: Tensor, path: Path, kind: str = "webp") -> tuple[Path, Path]:
    """Frames uint8 [F, N, C, H, W] → `{path}.png`, a row for each image and time to the right, and an animation.

    Images are enlarged by a whole factor; above each column of the picture stands how much of the way is done.

    Returns both paths; the animation is `{path}.webp` (lossless) or `.gif` (256 colours). Raises UserError for
    another kind, or if the folder cannot be written.
    """
    require(kind in FORMATS, f"--trajectory_format={kind}: use one of {', '.join(FORMATS)}")
    picture, animation = (path.with_name(f"{path.name}.{ending}") for ending in ("png", kind))
    sheet = _labelled(frames, columns(len(frames)))
    prepare_folder(path.parent)
    with replacing(picture) as temporary, open(temporary, "wb") as file:
        sheet.save(file, format="PNG")
    first, *others = [_sheet(states) for states in frames]
    durations = [FRAME_MS] * len(others) + [LAST_MS]
    options = {"lossless": True} if kind == "webp" else {"optimize": False}
    with replacing(animation) as temporary, open(temporary, "wb") as file:
        first.save(
            file, format=kind.upper(), save_all=True, append_images=others, duration=durations, loop=0, **options
        )
    return picture, animation


def _labelled(frames: Tensor, chosen: list[int]) -> Image.Image:
    """The frames `chosen`, a row for each image, below a line that says how far along the way each column is."""
    rows = _enlarged(frames[chosen].transpose(0, 1).flatten(0, 1))
    grid = Image.fromarray(make_grid(rows, nrow=len(chosen)).permute(1, 2, 0).numpy())
    sheet = Image.new("RGB", (grid.width, grid.height + HEADER), "white")
    sheet.paste(grid, (0, HEADER))
    draw, side = ImageDraw.Draw(sheet), rows.shape[-1]
    last = len(frames) - 1
    for column, frame in enumerate(chosen):
        label = "noise" if frame == 0 else "image" if frame == last else f"{frame / last:.0%}"
        middle = PADDING + column * (side + PADDING) + side / 2
        draw.text((middle - draw.textlength(label) / 2, 2), label, fill="#333333")
    return sheet


def _sheet(states: Tensor) -> Image.Image:
    """States [N, C, H, W] side by side, four to a line, enlarged."""
    large = _enlarged(states)
    return Image.fromarray(make_grid(large, nrow=min(4, len(large))).permute(1, 2, 0).numpy())


def _enlarged(images: Tensor) -> Tensor:
    """[N, C, H, W], each pixel a square."""
    factor = max(1, SIDE // images.shape[-1])
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
