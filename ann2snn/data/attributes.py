"""Classes of images that have attributes, each there or not: every combination of the attributes chosen is one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import require

WITHOUT = "not_"
MOST_ATTRIBUTES = 8  # 256 classes


def combinations(attributes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes, 2^k of k attributes, none of them first, as "Male,not_Smiling".

    The first attribute is the highest bit of a class's number.
    """
    choices = ((WITHOUT + name, name) for name in attributes)
    return tuple(",".join(chosen) for chosen in itertools.product(*choices))


def attributes_of(class_names: Sequence[str]) -> tuple[str, ...]:
    """The attributes whose combinations have these names; () where the names are others."""
    attributes = tuple(class_names[-1].split(",")) if class_names else ()
    return attributes if combinations(attributes) == tuple(class_names) else ()


def combined(present: Tensor, names: Sequence[str], chosen: Sequence[str], *, trained_on: bool) -> Tensor:
    """The class of each image, int64 [N].

    present: [N, A], 1 where an image has an attribute. names: of the A attributes. chosen: those that make classes.
    trained_on: whether each class must have an image.

    Raises UserError for attributes that are unknown, named twice, too many, or of which no image has a combination.
    """
    flag = f"--class_attributes={','.join(chosen)}"
    require(
        len(chosen) <= MOST_ATTRIBUTES, f"{flag}: use {MOST_ATTRIBUTES} at most, whose combinations are the classes"
    )
    for name in chosen:
        require(name in names, f"--class_attributes: no attribute is called {name}; use some of {', '.join(names)}")
    require(len(set(chosen)) == len(chosen), f"{flag}: name each attribute once")
    labels = torch.zeros(len(present), dtype=torch.int64)
    for name in chosen:
        labels = 2 * labels + (present[:, list(names).index(name)] > 0)
    counts = torch.bincount(labels, minlength=2 ** len(chosen)).tolist()
    if trained_on and 0 in counts:
        missing = combinations(chosen)[counts.index(0)]
        require(False, f"{flag}: no training image is {missing}; choose other attributes")
    return labels
