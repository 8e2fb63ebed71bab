"""Words of tables and messages."""

import ast
import re
from pathlib import Path

from ann2snn.run.tables import counted, first_of

ROOMS = ("cli", "generate", "report", "stages")
SOURCES = [path for room in ROOMS for path in sorted((Path(__file__).parents[2] / "ann2snn" / room).glob("*.py"))]


def test_a_count_and_its_noun_agree():
    counts = (None, 0, 1, 1.0, 1.5, 2, 5000)
    expected = ["– images", "0 images", "1 image", "1 image", "1.5 images", "2 images", "5,000 images"]
    assert [counted(count, "image") for count in counts] == expected
    assert [first_of(count, "image") for count in (1, 2)] == ["first image", "first 2 images"]


def test_what_is_printed_has_no_fixed_plural():
    """ "1 images": `counted` puts the noun. Constants, in capitals, are known not to be 1."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    calls = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
    prints = [call for call in calls if getattr(call.func, "id", "") == "print"]
    texts = [n for call in prints for n in ast.walk(call) if isinstance(n, ast.JoinedStr)]
    assert len(texts) > 50
    assert [ast.unparse(text) for text in texts if has_fixed_plural(text)] == []


def has_fixed_plural(text: ast.JoinedStr) -> bool:
    for value, after in zip(text.values, text.values[1:], strict=False):
        is_constant = isinstance(value, ast.Constant) or getattr(value.value, "id", "").isupper()
        words = after.value if isinstance(after, ast.Constant) else ""
        if not is_constant and re.match(r" (images|steps|calls|times|blocks)\b", words):
            return True
    return False
