"""The U-Net that converts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .checks import (
    FULL_PRECISION,
    check_bits,
    check_blocks,
    check_choice,
    check_diffusion_steps,
    check_multipliers,
    check_norm_bins,
    check_norm_groups,
    check_out_channels,
    make_whole,
    require,
)
from .classes import check_classes
from .size import SQUARE_32, ImageSize, check_halving, check_size

ARCHS = ("unet", "attention", "sddpm", "fsddim", "diffusers")  # of `nets.architecture`, known without torch

UNET_NORMS = ("group", "batch")


@dataclass(frozen=True)
class UNetConfig:
    """Shape and precision of the denoiser; stored in every checkpoint.

    bits: activation width; 32 is a plain ReLU network. weight_bits: 32 keeps full-precision weights.
    norm_groups: groups of every GroupNorm. With one channel per group a norm cancels the time embedding, which is
    added per channel just before it, so keep at least two channels per group in the narrowest block.
    spike_driven: every convolution but the head reads activations, so that in the spiking network it reads spikes.
    norm: group, or batch, whose running statistics make it an affine map that hardware can be told. norm_bins: parts of
    diffusion time of which batch norm has statistics of its own.
    out_channels: None for as many as `in_channels`; twice as many tell the variance of a step, too.
    num_classes: that it can be asked for; 0 for a network that is told no class. class_names: theirs, or none.
    """

    arch = "unet"  # no field: the name of `--arch`

    in_channels: int = 3
    image_size: ImageSize = SQUARE_32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    dropout: float = 0.1
    bits: int = 8
    weight_bits: int = FULL_PRECISION
    weight_quant: str = "apot"
    diffusion_steps: int = 1000
    norm_groups: int = 32
    spike_driven: bool = False
    norm: str = "group"
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    out_channels: int | None = None
    norm_bins: int = 1

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalise types once, here
        set_field(self, "bits", check_bits(self.bits, "--bit"))
        set_field(self, "weight_bits", check_bits(self.weight_bits, "--weight_bit"))
        make_whole(self)
        set_field(self, "image_size", check_size(self.image_size))
        count, names = check_classes(self.num_classes, self.class_names)
        set_field(self, "num_classes", count)
        set_field(self, "class_names", names)
        require(isinstance(self.spike_driven, bool), f"--spike_driven={self.spike_driven}: use True or False")
        check_choice(self.weight_quant, ("apot", "uniform"), "--weight_quant")
        require(1 <= self.in_channels <= 64, f"{self.in_channels} image channels: use 1 to 64")
        set_field(self, "out_channels", check_out_channels(self.out_channels))
        require(0 < self.ch <= 4096, f"--ch={self.ch}: use 1 to 4096")
        check_blocks(self.num_res_blocks, self.dropout)
        check_diffusion_steps(self.diffusion_steps)
        check_multipliers(self.ch_mult, levels=4)
        require(self.ch % 2 == 0, f"--ch={self.ch}: must be even (sine and cosine halves of the time embedding)")
        known = isinstance(self.norm, str) and self.norm in UNET_NORMS
        require(known, f"--norm={self.norm}: use group or batch with --arch=unet")
        if self.norm == "group":
            check_norm_groups(self.norm_groups, self.ch)
        check_norm_bins(self.norm_bins, self.norm)
        check_halving(self.image_size, len(self.ch_mult))

    @property
    def denoised_channels(self) -> int:
        """Channels of the network's output."""
        return self.in_channels if self.out_channels is None else self.out_channels

    def to_dict(self) -> dict:
        lists = {name: list(getattr(self, name)) for name in ("ch_mult", "class_names")}
        fields = dataclasses.asdict(self) | lists | {"image_size": self.image_size.stored}
        if self.norm_bins == 1:  # unknown to files of before
            del fields["norm_bins"]
        return fields
