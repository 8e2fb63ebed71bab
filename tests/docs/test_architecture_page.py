"""docs/architecture.md shows the house as it is."""

from pathlib import Path

from benchmarks.architecture import draw
from tests.test_architecture import FLOOR

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_the_list_of_floors():
    assert (DOCS / "figures/architecture.svg").read_text(encoding="utf-8") == draw()
    assert all(f">{room}</text>" in draw() for room in FLOOR)
