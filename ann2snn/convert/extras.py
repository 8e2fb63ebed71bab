"""Entries that a spiking network's state dict may have beyond the ANN's: made on the modules before it is loaded."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UserError


def prepare_for(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Let every module of `net` that can `adopt` optional entries make room for those that `state` holds for it.

    A module's `adopt(entries)` gets the entries below its own name, and raises UserError for what it cannot take.
    Raises UserError, naming the module.
    """
    for prefix, module in net.named_modules():
        adopt = getattr(module, "adopt", None)
        if adopt is None:
            continue
        start = f"{prefix}." if prefix else ""
        try:
            adopt({name.removeprefix(start): value for name, value in state.items() if name.startswith(start)})
        except UserError as error:
            raise UserError(f"{prefix}: {error}") from None
