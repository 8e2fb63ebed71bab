"""Weights of feature networks from files that anybody may have made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import folders, seal
from ..checkpoints.bounds import check_archive, plain, repeats_itself
from ..errors import UserError, is_out_of_memory
from ..files.atomic import file_hash
from ..files.plain import open_plain


def read_state(
    path: str | os.PathLike, flag: str, most: int, published: Callable[[str], bool] = lambda sha256: False
) -> dict[str, Tensor]:
    """The tensors of a state dict, by name: of torch's format, or safetensors where the name ends so.

    Nothing in it is executed. flag: as messages name it. most: bytes of the file. published: whether a file is a known
    one by the first digits of its SHA-256 (`file_hash`): that is read in torch's format of before 1.6 too, which cannot
    be checked.

    Raises UserError for a file that is missing, damaged, no state dict, or not finite.
    """
    path = Path(path)
    try:
        with open_plain(path, most) as file:
            if path.suffix == ".safetensors":
                state: object = folders.tensors(path)
            else:
                if not published(file_hash(path)):
                    check_archive(file)
                state = plain(torch.load(file, map_location="cpu", weights_only=True))
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}; check {flag}") from None
    except UserError:
        raise
    except Exception as error:  # the unpickler raises many types, with texts that span pages
        if is_out_of_memory(error):
            raise
        why = error if type(error) is ValueError else "it is damaged, or holds objects that could execute code"
        raise UserError(f"refusing {path}: {why}") from None
    if seal.is_damaged(path):  # torch's reader does not look at the checksums
        raise UserError(f"refusing {path}: its records do not match their checksums: the file is damaged")
    tensors = isinstance(state, dict) and all(type(k) is str and isinstance(v, Tensor) for k, v in state.items())
    if not isinstance(state, dict) or not tensors:
        raise UserError(f"refusing {path}: it is no state dict of tensors: check {flag}")
    if repeats_itself(list(state.values())):
        raise UserError(f"refusing {path}: its tensors share their data: they outgrow the file")
    return state


def check_fit(expected: dict[str, Tensor], state: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Raise UserError unless names, shapes and kinds agree and all values are finite."""
    if missing := sorted(expected.keys() - state.keys()):
        raise UserError(f"refusing {path}: it lacks {missing[0]} ({len(missing)} entries are missing)")
    if unknown := sorted(map(str, state.keys() - expected.keys())):
        raise UserError(f"refusing {path}: it has the unknown entry {unknown[0][:80]}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UserError(f"refusing {path}: {name} is {list(value.shape)}, expected {list(expected[name].shape)}")
        if value.is_floating_point() != expected[name].is_floating_point() or not bool(torch.isfinite(value).all()):
            raise UserError(f"refusing {path}: {name} holds values that are not finite or of another kind")


def digest(state: dict[str, Tensor]) -> str:
    """Twelve hexadecimal digits that tell one set of weights from another, however its file is packed."""
    return seal.content_hash(dict(state)).removeprefix("sha256:")[:12]
