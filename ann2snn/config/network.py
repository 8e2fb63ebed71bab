"""The U-Net that converts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .checks import FULL_PRECISION, MAX_MULT, check_bits, check_int, require


@dataclass(frozen=True)
class UNetConfig:
    """Shape and precision of the denoiser; stored in every checkpoint.

    bits: activation width; 32 is a plain ReLU network. weight_bits: 32 keeps full-precision weights.
    norm_groups: groups of every GroupNorm. With one channel per group a norm cancels the time embedding, which is
    added per channel just before it, so keep at least two channels per group in the narrowest block.
    spike_driven: every convolution but the head reads activations, so that in the spiking network it reads spikes.
    """

    arch = "unet"  # no field: the name of `--arch`

    in_channels: int = 3
    image_size: int = 32
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

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; normalise types once, here
        set_field(self, "bits", check_bits(self.bits, "--bit"))
        set_field(self, "weight_bits", check_bits(self.weight_bits, "--weight_bit"))
        set_field(self, "ch_mult", tuple(check_int(m, "--ch_mult") for m in self.ch_mult))
        for name, flag in (
            *(("in_channels", "image channels"), ("image_size", "--img_size"), ("ch", "--ch")),
            *(("num_res_blocks", "--num_res_blocks"), ("diffusion_steps", "--T"), ("norm_groups", "--norm_groups")),
        ):
            set_field(self, name, check_int(getattr(self, name), flag))
        require(isinstance(self.spike_driven, bool), f"--spike_driven={self.spike_driven}: use True or False")
        require(self.weight_quant in ("apot", "uniform"), f"--weight_quant={self.weight_quant}: use apot or uniform")
        require(
            self.in_channels in (1, 2, 3, 6),
            f"{self.in_channels} image channels: images have 1 (grey) or 3 (colour), twice as many with --process=cld",
        )
        require(0 < self.ch <= 4096, f"--ch={self.ch}: use 1 to 4096")
        require(1 <= self.num_res_blocks <= 16, f"--num_res_blocks={self.num_res_blocks}: use 1 to 16")
        require(0 <= self.dropout < 1, f"--dropout={self.dropout}: use a value in [0, 1)")
        require(1 <= self.diffusion_steps <= 100_000, f"--T={self.diffusion_steps}: use 1 to 100000")
        require(
            0 < len(self.ch_mult) <= 4 and min(self.ch_mult, default=0) > 0 and max(self.ch_mult) <= MAX_MULT,
            f"--ch_mult={','.join(map(str, self.ch_mult))}: give 1 to 4 values of 1 to {MAX_MULT}, each once; a flag "
            "repeated after a flagfile appends to the flagfile's values, so edit the flagfile instead",
        )
        require(self.ch % 2 == 0, f"--ch={self.ch}: must be even (sine and cosine halves of the time embedding)")
        require(
            self.norm_groups > 0 and self.ch % self.norm_groups == 0,
            f"--norm_groups={self.norm_groups}: must divide --ch={self.ch}",
        )
        factor = 2 ** (len(self.ch_mult) - 1)
        require(
            self.image_size > 0 and self.image_size % factor == 0,
            f"--img_size={self.image_size}: {len(self.ch_mult)} resolution levels halve it {len(self.ch_mult) - 1} "
            f"times, so it must be a multiple of {factor}",
        )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self) | {"ch_mult": list(self.ch_mult)}
