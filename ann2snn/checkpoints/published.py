"""Checkpoints of the published spiking diffusion programs, SDDPM, SDM and FSDDIM: weights without their settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..config import DiffusionConfig, ImageSize
from ..errors import UserError
from ..nets.direct import DirectConfig
from ..nets.fsddim import FSDDIMConfig
from ..nets.sddpm import SDDPMConfig
from .reference import TABLE, blocks_per_level

#: Settings that neither names nor shapes of the weights tell: a flag says them, and contradicts nothing.
UNTOLD = ("surrogate", "corrections", "decay", "soft_reset", "detach_reset", "norm")


def with_weights_by_our_name(payload: dict) -> dict:
    """FSDDIM keeps its weights as `model_state_dict`; ours, and SDDPM's, are `net_model`. Others stay as they are."""
    if "model_state_dict" not in payload or "net_model" in payload or "ema_model" in payload:
        return payload
    other_entries = {name: value for name, value in payload.items() if name != "model_state_dict"}
    return other_entries | {"net_model": payload["model_state_dict"]}


def weights_in(payload: dict, requested: str) -> str:
    """ "ema" or "net": what to read where `requested` is wanted. SDDPM and FSDDIM do not average their weights."""
    state = payload.get("net_model")
    alone = "config" not in payload and "ema_model" not in payload
    return "net" if alone and isinstance(state, dict) and arch_of(state) else requested


def arch_of(state: dict[str, Tensor]) -> type[DirectConfig] | None:
    """The settings' type of a published network, by names that no other has; None for others."""
    names = {name.removeprefix("module.").replace(".tsmconv.", ".") for name in state if isinstance(name, str)}
    if "conv_identity.weight" in names:
        return SDDPMConfig
    return FSDDIMConfig if {"pe", "conv_in.weight"} <= names else None


def infer_direct_config(
    state: dict[str, Tensor], path: object, spike_steps: int | None, image_size: ImageSize
) -> DirectConfig:
    """Read a published network's settings off names and shapes.

    spike_steps: time steps of a network call, which only the files of networks with TSM tell; default: 4 for SDDPM, 8
    for FSDDIM.

    Raises UserError for entries that are no such network's, and for other time steps than a file tells.
    """
    kind = arch_of(state)
    if kind is None:
        raise UserError(f"refusing {path}: its entries are not those of SDDPM, SDM or FSDDIM")
    fields = _sddpm_fields(state, path) if kind is SDDPMConfig else _fsddim_fields(state, path)
    stored_steps = fields.get("spike_steps")
    if spike_steps is not None and stored_steps not in (None, spike_steps):
        raise UserError(f"--timestep={spike_steps} contradicts {path}, whose network has {stored_steps} time steps")
    if spike_steps is not None:
        fields["spike_steps"] = spike_steps
    return _checked(path, lambda: kind(image_size=image_size, **fields))


def completed(config: DirectConfig, expected: dict, path: object) -> tuple[DirectConfig, dict]:
    """`config` with what a file cannot tell taken from flags, {field: (flag, value)}, and the flags left to compare.

    Raises UserError for values that make no network.
    """
    given_values = {name: value for name, (_, value) in expected.items() if name in UNTOLD and hasattr(config, name)}
    to_compare = {name: given for name, given in expected.items() if name not in given_values}
    return (_checked(path, lambda: replace(config, **given_values)) if given_values else config), to_compare


def diffusion_of(config: DirectConfig) -> DiffusionConfig:
    """The process that the published programs train with."""
    if isinstance(config, FSDDIMConfig):
        return DiffusionConfig(diffusion_steps=config.diffusion_steps, schedule="cosine", mean_type="v")
    return DiffusionConfig(diffusion_steps=config.diffusion_steps)


def _checked(path: object, make: Callable[[], DirectConfig]) -> DirectConfig:
    try:
        return make()
    except UserError as error:
        raise UserError(f"refusing {path}: its weights and the flags describe no valid network: {error}") from None


def _sddpm_fields(state: dict[str, Tensor], path: object) -> dict:
    tsm = any(".tsmconv." in name for name in state)
    plain = {name.replace(".tsmconv.", "."): value for name, value in state.items()} if tsm else state
    ch, in_channels = _shape(plain, "conv.weight", 4, path)[:2]
    mults, blocks = blocks_per_level(plain, ch, path, ends_with="conv.weight", width="conv2.weight")
    fields = {"in_channels": in_channels, "ch": ch, "ch_mult": mults, "num_res_blocks": blocks, "tsm": tsm}
    if tsm:
        fields["spike_steps"] = _shape(state, "conv.tsmp", 5, path)[0]
    return fields | {"diffusion_steps": _shape(state, TABLE, 2, path)[0]}


def _fsddim_fields(state: dict[str, Tensor], path: object) -> dict:
    ch, in_channels = _shape(state, "conv_in.weight", 5, path)[:2]
    matches = (re.match(r"downs\.([0-9]{1,4})\.([0-9]{1,4})\.", name) for name in state)
    block_indices = {(int(match[1]), int(match[2])) for match in matches if match}
    levels = len({level for level, _ in block_indices})
    if not levels:
        raise UserError(f"refusing {path}: its blocks are not those of this U-Net")
    blocks = len(block_indices) // levels - 1  # a level ends with what changes the resolution
    mults = []
    for level in range(levels):
        name = f"downs.{level}.{blocks}." + ("weight" if level == levels - 1 else "conv.1.weight")
        mults.append(_mult(_shape(state, name, 5, path)[0], ch, path))
    fields = {"in_channels": in_channels, "ch": ch, "ch_mult": tuple(mults), "num_res_blocks": blocks}
    return fields | {"diffusion_steps": _shape(state, "pe", 2, path)[0]}


def _mult(width: int, ch: int, path: object) -> int:
    if ch == 0 or width % ch:
        raise UserError(f"refusing {path}: {width} channels at a level are no multiple of {ch}")
    return width // ch


def _shape(state: dict[str, Tensor], name: str, dims: int, path: object) -> tuple[int, ...]:
    value = state.get(name)
    if value is None or value.dim() != dims:
        raise UserError(f"refusing {path}: {name} is {'missing' if value is None else f'no {dims}-D tensor'}")
    return tuple(value.shape)
