"""The size of images: given as one number or as two, kept as a pair."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .checks import check_int, require


class ImageSize(NamedTuple):
    """Height and width in pixels. As text, "32" for a square and "32,48" otherwise: what `--img_size` reads."""

    height: int
    width: int

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height},{self.width}"

    @property
    def stored(self) -> int | list[int]:
        """What files hold, ours and diffusers': one number for a square, [height, width] otherwise."""
        return self.height if self.height == self.width else [self.height, self.width]

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def times(self, factor: int) -> ImageSize:
        """With so many pixels in the place of each one's side."""
        return ImageSize(self.height * factor, self.width * factor)

    @property
    def side(self) -> int:
        """Of the square with as many pixels, rounded down."""
        return math.isqrt(self.pixels)


SQUARE_32 = ImageSize(32, 32)  # the default, as of the published networks


def check_size(value: Any, flag: str = "--img_size") -> ImageSize:
    """The size that a whole number, for squares, or a pair (height, width) gives. Raises UserError."""
    if not isinstance(value, tuple | list):
        return ImageSize(*[check_int(value, flag)] * 2)
    require(len(value) == 2, f"{flag}={','.join(map(str, value))[:40]}: give one number, or height and width")
    return ImageSize(*(check_int(side, flag) for side in value))


def read_size(text: str) -> ImageSize:
    """The size that "32" or "32,48" names. Raises ValueError."""
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise ValueError("use one whole number, or two: HEIGHT,WIDTH")
    return ImageSize(sides[0], sides[-1])


def check_halving(size: ImageSize, levels: int) -> None:
    """Raise UserError unless images can be halved from each of the resolution levels to the next."""
    factor = 2 ** (levels - 1)
    require(
        min(size) > 0 and not any(side % factor for side in size),
        f"--img_size={size}: {levels} resolution levels halve it {levels - 1} times, so it must be a multiple "
        f"of {factor}",
    )
