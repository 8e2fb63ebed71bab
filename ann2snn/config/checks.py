"""Checks that every setting goes through."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Protocol

from ..errors import UserError

FULL_PRECISION = 32
MAX_MULT = 64
MAX_IMAGE_SIZE = 4096
MAX_NORM_BINS = 64

#: Whole numbers that describe a U-Net → what messages call them.
WHOLE = {
    "in_channels": "image channels",
    "ch": "--ch",
    "num_res_blocks": "--num_res_blocks",
    "spike_steps": "--timestep",
    "diffusion_steps": "--T",
    "norm_groups": "--norm_groups",
    "norm_bins": "--norm_bins",
    "block_size": "--block_size",
}

#: Whole number that a flag or an argument of the Python API gives → smallest and largest value.
LIMITS = {
    **dict.fromkeys(("sample_step", "save_step", "eval_step", "log_step", "ft_cache", "warmup"), (0, 2**53)),
    **dict.fromkeys(("sample_size", "gen_images", "gap_images"), (0, 10**6)),
    **dict.fromkeys(("num_workers", "num_threads"), (0, 1024)),
    **dict.fromkeys(("num_images", "batch_size", "ft_batch_size", "pr_images", "n"), (1, 10**6)),
    "power_ema_step": (1, 2**53),
    "spike_chunk": (0, 255),
    "pr_k": (1, 1000),
    "sampler_steps": (1, 10**5),
    **dict.fromkeys(("trajectory_images", "drawn_images"), (1, 64)),
    **dict.fromkeys(("resamples", "invert_iterations"), (1, 1000)),
    "img_size": (1, MAX_IMAGE_SIZE),
}


class Record(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class UNetRecord(Record, Protocol):
    """A U-Net's configuration."""

    @property
    def ch_mult(self) -> tuple[int, ...]: ...


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def check_int(value: Any, flag: str) -> int:
    """Return `value` as an integer if it is one in value (2.0 and numpy's are, 2.5 and "2" not). Raises UserError."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value
    require(is_real and abs(value) < 2**53 and value == int(value), f"{flag}={value}: must be a whole number")
    return int(value)


def check_limits(name: str, value: object, flag: str = "") -> int:
    """Return `value` as an integer within the `LIMITS` of `name`. flag: as messages name it. Raises UserError."""
    flag = flag or f"--{name}"
    integer = check_int(value, flag)
    least, most = LIMITS[name]
    require(least <= integer <= most, f"{flag}={value}: use {least} to {most}")
    return integer


def check_number(value: Any, flag: str) -> float:
    """Return `value` as a float if it is a finite number (numpy's are, texts not). Raises UserError."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    require(number and math.isfinite(value), f"{flag}={value}: must be a finite number")
    return float(value)


def check_choice(value: object, allowed: Collection[str], flag: str) -> None:
    """Raise UserError for anything but one of these words."""
    require(isinstance(value, str) and value in allowed, f"{flag}={value}: use one of {', '.join(allowed)}")


def check_bool(value: object, flag: str) -> bool:
    """Return `value` if it is True or False (numpy's are). Raises UserError."""
    plain = _plain(value)
    require(isinstance(plain, bool), f"{flag}={value}: use True or False")
    return bool(plain)


def make_plain(config: Record) -> None:
    """Turn numpy's scalars into Python's in a frozen configuration: checkpoints and JSON files take no others."""
    for name in config.__dataclass_fields__:
        object.__setattr__(config, name, _plain(getattr(config, name)))


def _plain(value: Any) -> Any:
    """Python's number or truth for a scalar of numpy, which this module need not import; all else as it is."""
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if scalar else value


def check_seed(seed: int, flag: str = "--seed") -> int:
    """Seeds of 32 bits: numpy would split a larger one in two words, and image 0 of one could be image 1 of another."""
    require(0 <= check_int(seed, flag) < 2**32, f"{flag}={seed}: use 0 to {2**32 - 1}")
    return int(seed)


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


def make_whole(config: UNetRecord) -> None:
    """Turn what is whole in value into integers, in a U-Net's frozen configuration. Raises UserError."""
    make_plain(config)
    for name, flag in WHOLE.items():
        if hasattr(config, name):
            object.__setattr__(config, name, check_int(getattr(config, name), flag))
    mults = config.ch_mult
    listed = isinstance(mults, Iterable) and not isinstance(mults, str | bytes)
    require(listed, f"--ch_mult={mults}: give the multipliers in a list")
    object.__setattr__(config, "ch_mult", tuple(check_int(mult, "--ch_mult") for mult in mults))


def check_even_width(ch: int) -> None:
    """Sinusoids take a half of the channels each, and those of DDPM divide by ch / 2 - 1. Raises UserError."""
    require(4 <= ch <= 4096 and ch % 2 == 0, f"--ch={ch}: use an even number from 4 to 4096")


def check_diffusion_steps(steps: int) -> None:
    """Raise UserError for a process of another number of steps than 1 to 100000."""
    require(1 <= steps <= 100_000, f"--T={steps}: use 1 to 100000")


def check_out_channels(channels: object) -> int | None:
    """Return the channels of a network's output as an integer, or None for as many as its input's. Raises UserError."""
    if channels is None:
        return None
    count = check_int(channels, "output channels")
    require(1 <= count <= 128, f"{count} output channels: use 1 to 128")
    return count


def check_norm_groups(groups: int, ch: int) -> None:
    """Raise UserError unless the channels of every level can be cut into `groups`."""
    require(groups > 0 and ch % groups == 0, f"--norm_groups={groups}: must divide --ch={ch}")


def check_norm_bins(bins: int, norm: str) -> None:
    """Raise UserError for more parts of diffusion time than statistics are kept for, or for a norm that keeps none."""
    require(1 <= bins <= MAX_NORM_BINS, f"--norm_bins={bins}: use 1 to {MAX_NORM_BINS}")
    require(bins == 1 or norm == "batch", f"--norm_bins={bins}: only with --norm=batch, which keeps statistics")


def check_blocks(num_res_blocks: int, dropout: float) -> None:
    """Raise UserError for residual blocks that no U-Net has."""
    require(1 <= num_res_blocks <= 16, f"--num_res_blocks={num_res_blocks}: use 1 to 16")
    check_number(dropout, "--dropout")
    require(0 <= dropout < 1, f"--dropout={dropout}: use a value in [0, 1)")


def check_multipliers(ch_mult: tuple[int, ...], levels: int, largest: float = MAX_MULT) -> None:
    """Raise UserError unless `ch_mult` are 1 to `levels` positive numbers, none above `largest`."""
    values = "positive values" if largest == math.inf else f"values of 1 to {largest}"
    require(
        0 < len(ch_mult) <= levels and min(ch_mult) > 0 and max(ch_mult) <= largest,
        f"--ch_mult={','.join(map(str, ch_mult))}: give 1 to {levels} {values}, each once; repeating the flag "
        "appends a value, and the values of the command line replace those of a flagfile",
    )
