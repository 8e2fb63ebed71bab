"""Networks are measured and run in eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the context, and back in its own after it."""
    modes = {module: module.training for net in nets for module in net.modules()}
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
