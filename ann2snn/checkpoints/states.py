"""State dicts from files: whether they are named tensors, and whether they are a network's."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ..convert import prepare_for
from ..errors import UserError
from ..nets.attention_unet import AttentionUNetConfig
from . import bounds


def state_in(payload: dict, key: str, path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights under `key`, named floating-point tensors. Raises UserError."""
    state = payload.get(key)
    if not isinstance(state, dict) or not state:
        raise UserError(f"refusing {path}: no weights under {key!r}")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        integer_valued = plain and isinstance(name, str) and _is_whole(name, value)
        if not isinstance(name, str) or not plain or not (value.is_floating_point() or integer_valued):
            raise UserError(
                f"refusing {path}: entry {str(name)[:80]!r} of {key!r} is not a named floating-point tensor"
            )
    if bounds.repeats_itself(list(state.values())):
        raise UserError(f"refusing {path}: the tensors of {key!r} share their data: they outgrow the file")
    return state


def _is_whole(name: str, value: Tensor) -> bool:
    """The integers of a state dict: the batches that a batch norm has seen, the range of a quantizer."""
    shapes = {"num_batches_tracked": (), "_extra_state": (2,)}
    return value.dtype == torch.int64 and shapes.get(name.rpartition(".")[2]) == tuple(value.shape)


def load_state(net: nn.Module, state: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Copy `state` into `net`, in place but for optional entries. Raises UserError, naming what does not fit."""
    expected = check_fit(net, state, path)
    for name, value in state.items():
        if not bool(torch.isfinite(value.to(expected[name].dtype)).all()):
            raise UserError(f"refusing {path}: {name} holds values that are not finite")
    try:
        net.load_state_dict(state, strict=True)
    except ValueError as error:
        raise UserError(f"refusing {path}: {error}") from None


def check_fit(net: nn.Module, state: dict[str, Tensor], path: str | os.PathLike) -> dict[str, Tensor]:
    """Make room for optional entries, compare names and shapes; the network's own state. Raises UserError."""
    try:
        prepare_for(net, state)
    except UserError as error:
        raise UserError(f"refusing {path}: {error}") from None
    expected = net.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        difference = f"lacks {missing[0]}" if missing else f"has the unknown entry {unknown[0]}"
        raise UserError(f"refusing {path}: it {difference} ({len(missing)} missing, {len(unknown)} unknown entries)")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UserError(f"refusing {path}: {name} is {list(value.shape)}, expected {list(expected[name].shape)}")
    return expected


def attention_settings(**fields: object) -> dict:
    """The attention U-Net of what a foreign file tells, its defaults elsewhere; not checked yet."""
    defaults = {name: field.default for name, field in AttentionUNetConfig.__dataclass_fields__.items()}
    return defaults | fields


def divided(width: int, ch: int, path: str | os.PathLike) -> int:
    """How many times `ch` channels make `width`. Raises UserError."""
    if width % ch:
        raise UserError(f"refusing {path}: a level of {width} channels is no multiple of the first one's {ch}")
    return width // ch


def joined_factors(state: dict[str, Tensor], prefix: str, kind: str, path: str | os.PathLike) -> Tensor:
    """The entries `{prefix}q.{kind}`, k and v, one below the other: one projection for three. Raises UserError."""
    try:
        return torch.cat([state[f"{prefix}{factor}.{kind}"] for factor in "qkv"])
    except (KeyError, RuntimeError):
        place = prefix.rpartition(".")[0]
        raise UserError(f"refusing {path}: {place} lacks a projection to q, k or v") from None
