"""How exactly a GPU multiplies float32 matrices and convolves: in float32, or in TF32, with 10 bits of mantissa.

PyTorch convolves in TF32 unless told otherwise. Here float32 means float32: TF32 is computed in where it was asked for
(`--tf32`, `SampleConfig.tf32`: training steps and sampling), and never where equality is claimed or features are
extracted. On a CPU it makes no difference. Not tried on a GPU yet; the tests look at what torch is told.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch


def set_tf32(on: bool) -> None:
    """Let this process's products of float32 on a GPU be computed in TF32, or not, from now on."""
    # By the old names: torch 2.6 knows no others, later versions keep the new ones in step with them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = on
        torch.backends.cudnn.allow_tf32 = on


@contextlib.contextmanager
def in_tf32(on: bool) -> Iterator[None]:
    """`set_tf32(on)` in here; what the caller's process had is put back."""
    put_back = _present()
    set_tf32(on)
    try:
        yield
    finally:
        put_back()


def _present() -> Callable[[], None]:
    """Puts back what is set now."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            products, convolutions = matmul.allow_tf32, cudnn.allow_tf32
        except RuntimeError:  # the caller uses the names since torch 2.9, which the old ones cannot tell
            owners: list[Any] = [
                matmul,
                *(getattr(cudnn, name) for name in ("conv", "rnn")),
            ]  # older versions lack them
            kept = [owner.fp32_precision for owner in owners]

            def put_new() -> None:
                for owner, value in zip(owners, kept, strict=True):
                    owner.fp32_precision = value

            return put_new

    def put_old() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions

    return put_old
