"""Parameters that anybody can compute again: the golden values of directly trained networks belong to them."""

import math

import torch
from torch import nn

TABLES = ("pe", "time_embedding.timembedding.0.weight")


def deterministic_fill(net: nn.Module) -> list[str]:
    """Fill `net` with sin(0.7·i + 1.3·k), i an element's index, k its key's rank in ASCII order; returns the keys.

    Scaled by what the key is: a weight by √(2/fan_in), the rest to be small or near 1. Tables and counters stay.
    """
    state = net.state_dict()
    keys = sorted(state)
    for rank, key in enumerate(keys):
        old = state[key]
        if key in TABLES or key.endswith("num_batches_tracked"):
            continue
        value = torch.sin(0.7 * torch.arange(old.numel(), dtype=torch.float64) + 1.3 * rank).view(old.shape)
        if key.endswith(("running_var", "tsmp")) or (old.dim() == 1 and key.endswith("weight")):
            value = 1 + 0.2 * value
        elif old.dim() == 1:
            value = 0.1 * value
        else:
            value = value * math.sqrt(2 * old.shape[0] / old.numel())
        state[key] = value.to(old.dtype)
    net.load_state_dict(state)
    return keys
