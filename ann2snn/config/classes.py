"""Classes of images: how many a network knows, what they are called, and which of them is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import check_int, check_number, require

MOST_CLASSES = 10_000
LONGEST_NAME = 200
MOST_GUIDANCE = 100.0
CLASS_DROPOUT = 0.1  # share of the images whose class a network is not told while it is trained
NO_CLASS = "none"


def check_classes(num_classes: object, class_names: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """The number of classes, 0 for none, and their names, as many or none at all. Raises UserError."""
    count = check_int(num_classes, "num_classes")
    require(count == 0 or 2 <= count <= MOST_CLASSES, f"num_classes={count}: use 2 to {MOST_CLASSES}, or 0 for none")
    listed = isinstance(class_names, (list, tuple)) and all(isinstance(name, str) for name in class_names)
    require(listed, f"class_names={str(class_names)[:40]}: use a list of texts")
    names = tuple(class_names)
    require(len(names) in (0, count), f"{len(names)} class_names for num_classes={count}: give one a class, or none")
    require(all(0 < len(name) <= LONGEST_NAME for name in names), f"class_names: of 1 to {LONGEST_NAME} characters")
    return count, names


def check_guidance(weight: object) -> float:
    """The weight w of (1 + w)·conditional − w·unconditional, 0 to 100. Raises UserError."""
    weight = check_number(weight, "--guidance")
    require(0 <= weight <= MOST_GUIDANCE, f"--guidance={weight}: use 0 (none) to {MOST_GUIDANCE:g}")
    return weight


def check_class_label(label: object) -> int | str | None:
    """A class's number as an integer, its name, "none" for no class, or None. Raises UserError."""
    if label is None:
        return None
    if isinstance(label, str) and not (label.isascii() and label.isdecimal()):
        require(0 < len(label) <= LONGEST_NAME, f"--class_label={label[:40]}: use a class's number or name")
        return label
    number = check_int(int(label[:17]) if isinstance(label, str) else label, "--class_label")
    require(number >= 0, f"--class_label={number}: use 0 or more")
    return number


def class_index(label: int | str, num_classes: int, class_names: Sequence[str] = ()) -> int:
    """The row of a class among `num_classes`, which itself is the row of "none". Raises UserError.

    A number is always a number: it names no class that is called like a number.
    """
    if label == NO_CLASS:
        return num_classes
    if isinstance(label, str):
        known = f"one of {', '.join(class_names)[:300]}, or a number" if class_names else "a number"
        require(label in class_names, f"--class_label={label}: no class has this name; use {known}")
        return list(class_names).index(label)
    require(0 <= label < num_classes, f"--class_label={label}: use 0 to {num_classes - 1}, or {NO_CLASS}")
    return label
