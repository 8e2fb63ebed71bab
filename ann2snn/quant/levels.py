"""Bit widths, the levels that they stand for, and the search for the nearest power-of-two level."""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

QUANTIZED_BITS = (2, 3, 4, 5, 6, 7, 8)
FULL_PRECISION = 32


def check_bits(bits: int) -> int:
    """Return `bits` if it is 2..8 or 32 (full precision).

    Raises:
        ValueError: any other value, floats and bools included, since 2.5 bits would give levels beyond the clip.
    """
    allowed = (*QUANTIZED_BITS, FULL_PRECISION)
    if type(bits) is not int or bits not in allowed:
        raise ValueError(f"bits must be one of {', '.join(map(str, allowed))} (an integer), got {bits!r}")
    return bits


def check_magnitude_bits(bits: int, lowest: int) -> None:
    """Raise ValueError unless `bits`, without a sign, are an integer from `lowest` to 8."""
    if type(bits) is not int or not lowest <= bits <= 8:
        raise ValueError(f"bits of a quantizer must be an integer from {lowest} to 8, got {bits!r}")


def power_levels(bits: int, additive: bool = True) -> tuple[float, ...]:
    """The 2**bits magnitude levels in [0, 1], ascending.

    Plain powers of two: 0 and 2**-j, j = 0 .. 2**bits - 2 (beyond 6 bits the smallest leave float32's normal range).

    Additive (Li et al. 2020, with a base bit-width of 2): each level is a sum of n = bits // 2 terms, term i from
    {0, 2**-i, 2**-(i+n), 2**-(i+2n)}, divided by the largest sum: the powers are dealt out to the terms row by row. An
    odd width adds one term of a single bit, whose power, 2**-2n, is dealt between the second and the third row; the
    third then starts at 2**-(2n+1). Every power is used once, so the sums are binary numerals and all differ: the rule
    is sound for any width.

    Args:
        bits: 1..8, the bits of the magnitude (a signed weight has one more). With 1, the levels are 0 and 1.
    Raises:
        ValueError: bits outside 1..8.
    """
    check_magnitude_bits(bits, lowest=1)
    if not additive:
        return (0.0, *sorted(2.0**-j for j in range(2**bits - 1)))
    n, odd = divmod(bits, 2)
    terms: list[tuple[float, ...]] = [(0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n + odd)) for i in range(n)]
    if odd:
        terms.append((0.0, 2.0 ** -(2 * n)))
    sums = [0.0]
    for term in terms:
        sums = [s + p for s in sums for p in term]
    return tuple(sorted(s / max(sums) for s in sums))


def whole_levels(bits: int, power: bool, additive: bool = True) -> int | None:
    """The least n for which n times each level in [-1, 1] of a signed weight is whole; None where there is none.

    Args: of `QuantConv2d`.
    """
    check_bits(bits)
    return _smallest_powers(bits - 1, additive) if power and bits > 2 else 2 ** (bits - 1) - 1


def _smallest_powers(bits: int, additive: bool) -> int | None:
    """How often the smallest of `power_levels` goes into 1; None if some level, or 1, is no multiple of it."""
    magnitudes = power_levels(bits, additive)
    largest = round(1 / magnitudes[1])
    exact = all(abs(level * largest - round(level * largest)) < 1e-6 for level in magnitudes)
    return largest if exact else None


#: Most cells that levels are looked up in, see `_cell_table`.
_MOST_CELLS = 2**14


@lru_cache(maxsize=64)
def _cell_table(
    bits: int, additive: bool, signed: bool, dtype: torch.dtype, device: torch.device
) -> tuple[int, Tensor] | None:
    """(cells per unit U, level [K] of each cell [k/U, (k+1)/U) from the lowest level's on), or None.

    Additive levels are whole multiples of their smallest power, so every boundary half way between two of them is an
    edge of a cell, and a floor and a look-up find the nearest level: several times faster than a search.
    """
    largest = _smallest_powers(bits, additive)
    if largest is None or 4 * largest > _MOST_CELLS:
        return None
    integers = [round(level * largest) for level in power_levels(bits, additive)]
    if signed:
        integers = [-integer for integer in reversed(integers[1:])] + integers
    edges = torch.tensor([low + high for low, high in pairwise(integers)])  # of boundaries; U is 2 * largest
    cells = torch.arange(2 * integers[0], 2 * integers[-1] + 1)
    levels, _ = _power_table(bits, additive, signed, dtype, device)
    return 2 * largest, levels[torch.bucketize(cells, edges, right=True).to(device)]


def nearest_power(x: Tensor, alpha: Tensor, bits: int, additive: bool, signed: bool) -> Tensor:
    """alpha times the level next to x / alpha, any shape; the upper one half way. NaN stays NaN."""
    d = x / alpha
    table = _cell_table(bits, additive, signed, d.dtype, d.device)
    if table is None:
        levels, boundaries = _power_table(bits, additive, signed, d.dtype, d.device)
        q = levels[torch.bucketize(d.contiguous(), boundaries, right=True)]
        # bucketize puts NaN in the last bucket, which would hide a diverged training.
        return torch.where(d.isnan(), d, q).mul_(alpha)
    per_unit, levels = table
    lowest = per_unit if signed else 0
    cell = d.mul_(per_unit).floor_().clamp_(-lowest, per_unit)
    index = cell.to(torch.int32).add_(lowest).clamp_(0, per_unit + lowest)  # NaN may become any integer
    values = (levels * alpha).index_select(0, index.flatten()).view(index.shape)
    return torch.add(values, cell, alpha=0, out=cell)  # 0 · NaN is NaN


@lru_cache(maxsize=64)
def _power_table(
    bits: int, additive: bool, signed: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ascending levels [K] and the boundaries [K - 1] half way between neighbours."""
    levels = torch.tensor(power_levels(bits, additive), dtype=torch.float64)
    if signed:
        levels = torch.cat([-levels[1:].flip(0), levels])
    # Levels that the dtype cannot tell apart (2**-254 is 0 in float32) are harmless: they have the same value.
    levels = levels.to(dtype)
    return levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)
