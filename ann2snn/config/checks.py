"""Checks that every setting goes through."""

from __future__ import annotations

import re

from ..errors import UserError

FULL_PRECISION = 32
MAX_MULT = 64
MAX_IMAGE_SIZE = 4096


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def check_int(value: object, flag: str) -> int:
    """Return `value` as an integer if it is one in value (2.0 is, 2.5, nan and "2" are not). Raises UserError."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    require(whole and abs(value) < 2**53 and value == int(value), f"{flag}={value}: must be a whole number")
    return int(value)


def check_seed(seed: int) -> None:
    """Seeds of 32 bits: numpy would split a larger one in two words, and image 0 of one could be image 1 of another."""
    require(0 <= check_int(seed, "--seed") < 2**32, f"--seed={seed}: use 0 to {2**32 - 1}")


def check_ft_name(name: str) -> None:
    """Raise UserError for what must not become the end of a folder's name."""
    plain = re.fullmatch(r"[A-Za-z0-9-]{0,40}", name) is not None
    require(plain, f"--ft_name={name}: use up to 40 letters, digits and dashes")


def check_accumulate(parts: int) -> None:
    """Raise UserError unless a batch can be gone through in `parts` parts."""
    require(parts >= 1, f"--accumulate={parts}: use at least 1")


def check_bits(bits: int, flag: str) -> int:
    """Return `bits` as an integer; 2 to 8 or 32 (full precision). Raises UserError."""
    bits = check_int(bits, flag)
    require(bits in range(2, 9) or bits == FULL_PRECISION, f"{flag}={bits}: use 2 to 8, or 32 for full precision")
    return bits
