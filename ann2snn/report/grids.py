"""Sample images: one strip for each network, so that a column shows what the same noise became in every network."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.decode import decode_image
from ..errors import UserError
from ..generate.images import INDEX_DIGITS
from ..run.folder import PICTURES, REAL_IMAGES
from .collect import ImageSet, Run
from .modes import Mode
from .parse import clean, options_text, sampling_text

STRIP_WIDTH = 860  # page pixels a strip may take
CELL = 64  # page pixels that the width of an image should take, in whole multiples of its own
MOST_IMAGES = 16
PICTURE_WIDTH = 342  # page pixels of a picture shown as it is
GAP = 2  # pixels between images, as in the grids that the stages write
MOST_STRIPS = 24
#: What two folders share, besides the sampler's options, where image i took the same way from the same noise.
SAME_NOISE = ("sampler", "sampler_steps", "eta", "clip_x0", "var_type", "seed")


_GRID = re.compile(rf"{PICTURES}/(ANN|(SNN|SDDPM|FSDDIM)_T[0-9]+(_carried)?)\.png")


@dataclass(frozen=True)
class Grid:
    """A strip or a picture. width: in page pixels, a whole multiple of its own where it fits. mode: None for data."""

    title: str
    png: bytes
    width: int
    mode: Mode | None = None
    source: str = ""

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class GridGroup:
    """Strips to compare; or, with strips False, pictures. heading: how the images were made."""

    heading: str
    grids: list[Grid]
    strips: bool = True


def sample_groups(run: Run) -> list[GridGroup]:
    """One group for each way of sampling, real data first; pictures of the stages if nothing was generated."""
    groups: dict[tuple, list[ImageSet]] = {}
    for image_set in run.image_sets[:MOST_STRIPS]:
        way = (*(clean(image_set.settings.get(name)) for name in SAME_NOISE), options_text(image_set.settings))
        groups.setdefault(way, []).append(image_set)
    if len(run.image_sets) > MOST_STRIPS:
        run.notes.append(f"{len(run.image_sets)} folders of images: the first {MOST_STRIPS} are shown")
    result = [GridGroup(how_sampled(sets[0].settings), group_grids(sets, run.notes)) for sets in groups.values()]
    result = [group for group in result if group.grids] or _stage_pictures(run)
    return _with_real(run, result)


def how_sampled(settings: dict) -> str:
    """Such as "ddim, 50 steps, eta 0.0, seed 0"."""
    return f"{sampling_text(settings)}, seed {clean(settings.get('seed'))}" if settings else "unknown settings"


def group_grids(sets: list[ImageSet], notes: list[str]) -> list[Grid]:
    """A strip of the images that all sets have; a set that is damaged is left out with a note."""
    common = sorted(set.intersection(*(set(image_set.indices) for image_set in sets)))
    grids = []
    for image_set in sets:
        try:
            images = _load(image_set, common or image_set.indices)
        except UserError as error:
            notes.append(clean(error))
            continue
        source = clean(image_set.settings.get("checkpoint", ""), 16)
        alike = sum(other.mode == image_set.mode for other in sets) > 1  # several fine-tuned networks, say
        title = f"{image_set.mode.label} ({source[:6]})" if alike and source else image_set.mode.label
        grids.append(make_strip(title, images, image_set.mode, source))
    return grids


def make_strip(title: str, images: list[Image.Image], mode: Mode | None = None, source: str = "") -> Grid:
    """images: of one size, put in one row; between them one sees the page."""
    width, height = images[0].size
    strip = Image.new("RGBA", (len(images) * (width + GAP) - GAP, height))
    for index, image in enumerate(images):
        strip.paste(image, (index * (width + GAP), 0))
    return _as_grid(title, strip, max(1, CELL // width), mode, source)


def fitting(width: int) -> int:
    """How many images of this width fit in a strip."""
    scale = max(1, CELL // width)
    return max(1, min(MOST_IMAGES, (STRIP_WIDTH + GAP * scale) // ((width + GAP) * scale)))


def picture_grid(title: str, path: Path, notes: list[str]) -> list[Grid]:
    """A picture as it is, in a list; none, with a note, if it is damaged."""
    try:
        picture = decode_image(path)
    except UserError as error:
        notes.append(clean(error))
        return []
    if picture.width > 2 * PICTURE_WIDTH:  # keeps the page small
        picture.thumbnail((2 * PICTURE_WIDTH, 2 * PICTURE_WIDTH))
    return [_as_grid(title, picture, PICTURE_WIDTH // picture.width)]


def training_grids(run: Run, most: int = 3) -> list[Grid]:
    """Sample grids from along the training, evenly chosen, the last included."""
    steps = list(run.samples)
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, most - 1))] for i in range(most)}) if steps else []
    return [grid for step in chosen for grid in picture_grid(f"step {step:,}", run.samples[step], run.notes)]


def _as_grid(title: str, picture: Image.Image, scale: int, mode: Mode | None = None, source: str = "") -> Grid:
    buffer = io.BytesIO()
    picture.convert("RGBA" if picture.mode == "RGBA" else "RGB").save(buffer, format="PNG", optimize=True)
    return Grid(title, buffer.getvalue(), picture.width * scale or PICTURE_WIDTH, mode, source)


def _load(image_set: ImageSet, indices: Sequence[int]) -> list[Image.Image]:
    """The first of the images `indices`, as many as fit. Raises UserError for a damaged one."""
    images: list[Image.Image] = []
    for index in indices:
        image = decode_image(image_set.folder / f"{index:0{INDEX_DIGITS}}.png")
        if images and image.size != images[0].size:
            raise UserError(f"{image_set.folder.name} holds images of several sizes")
        images.append(image)
        if len(images) == fitting(image.width):
            break
    return images


def _stage_pictures(run: Run) -> list[GridGroup]:
    """What the conversion wrote to `images/`, where evaluate.py draws, too."""
    paths = {name: path for name, path in run.pictures.items() if _GRID.fullmatch(name)}
    grids = [grid for name, path in paths.items() for grid in picture_grid(clean(name), path, run.notes)]
    heading = "Written by the stages; pictures of one command are from the same noise."
    return [GridGroup(heading, grids[:4], strips=False)] if grids else []


def _with_real(run: Run, groups: list[GridGroup]) -> list[GridGroup]:
    """The groups with `real.png` first: a strip like the others where it can be cut into one, else as it is."""
    path = run.pictures.get(REAL_IMAGES)
    if path is None:
        return groups
    if groups and groups[0].strips:
        try:
            cells = _cells(decode_image(path), _size_of(run))
        except UserError:
            cells = []
        if cells:
            groups[0].grids.insert(0, make_strip("real data", cells[: fitting(cells[0].width)]))
            return groups
    pictures = picture_grid("real data", path, run.notes)
    if groups and not groups[0].strips:
        groups[0].grids[:0] = pictures
        return groups
    return [GridGroup("", pictures, strips=False), *groups] if pictures else groups


def _size_of(run: Run) -> tuple[int, int]:
    """(width, height). Raises UserError if the first generated image is damaged."""
    first = run.image_sets[0]
    return decode_image(first.folder / f"{first.indices[0]:0{INDEX_DIGITS}}.png").size


def _cells(picture: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    """The images of a grid with GAP pixels around each; none if the picture is no such grid."""
    width, height = size
    across, down = width + GAP, height + GAP
    if (picture.width - GAP) % across or (picture.height - GAP) % down:
        return []
    corners = [(x, y) for y in range(GAP, picture.height, down) for x in range(GAP, picture.width, across)]
    return [picture.crop((x, y, x + width, y + height)) for x, y in corners]
