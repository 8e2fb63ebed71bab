"""Density and coverage (Naeem et al. 2002.09797): precision and recall that an outlier cannot move.

Around each real feature is the ball that reaches to its k-th nearest real neighbour. Density is the number of real
balls that a generated feature lies in, over k, on average; above 1 where generated features crowd. Coverage is the
share of real balls with a generated feature in them.
"""

import torch

from .precision_recall import COLUMN_BLOCK, ROW_BLOCK, Manifold, manifold


def density_coverage(real, generated, k=3, row_block=ROW_BLOCK, column_block=COLUMN_BLOCK):
    """Density and coverage of generated against real features.

    Args:
        real, generated: features [N,D] and [M,D]; real may be a Manifold, which saves measuring its radii again.
        k: which neighbour sets a radius; the paper has 5.
        row_block, column_block: as in `manifold`.

    Returns:
        (density, coverage), floats of at least 0, coverage at most 1.

    Raises:
        UserError: as in `manifold`, and for sets of different dimension.
    """
    blocks = {"row_block": row_block, "column_block": column_block}
    balls = real if isinstance(real, Manifold) else manifold(real, k, **blocks)
    inside = balls.occupants(torch.as_tensor(generated), **blocks)
    return float(inside.sum()) / (k * len(generated)), float((inside > 0).double().mean())
