"""Score any images against any others: folders, or npz files as other programs write them."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.image_set import ImageSet
from ..metrics.compare import compare
from ..metrics.metric import Setting
from ..run.tables import counted, show


def score_against(scored: ImageSet, against: ImageSet, names: Iterable[str], setting: Setting) -> int:
    """Print what these metrics find of images with others as the real ones, and how. Raises UserError."""
    scores = compare(scored, against, names, setting)
    print(", ".join(f"{name} {show(value)}" for name, value in scores.items() if isinstance(value, float)))
    features = "" if setting.extractor is None else f", features of {scores['extractor']}"
    images, real = counted(scored.count, "image"), counted(against.count, "image")
    print(f"{scored.name}: {images}, against {against.name}: {real}{features}")
    for note in scores["notes"]:
        print(f"note: {note}")
    return 0
