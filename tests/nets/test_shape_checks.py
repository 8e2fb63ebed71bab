"""What no U-Net can be is refused with the same line, whichever it is."""

import pytest

from ann2snn.config import UNetConfig
from ann2snn.errors import UserError
from ann2snn.nets.attention_unet import AttentionUNetConfig
from ann2snn.nets.fsddim import FSDDIMConfig
from ann2snn.nets.sddpm import SDDPMConfig

CONFIGS = [UNetConfig, AttentionUNetConfig, SDDPMConfig, FSDDIMConfig]
APPENDS = "repeating the flag appends a value, and the values of the command line replace those of a flagfile"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"num_res_blocks": 17}, "--num_res_blocks=17: use 1 to 16"),
        ({"num_res_blocks": 1.5}, "--num_res_blocks=1.5: must be a whole number"),
        ({"ch_mult": (1, 2.5)}, "--ch_mult=2.5: must be a whole number"),
        ({"dropout": 1}, "--dropout=1: use a value in [0, 1)"),
        ({"diffusion_steps": 100_001}, "--T=100001: use 1 to 100000"),
        ({"norm_groups": 48}, "--norm_groups=48: must divide --ch=128"),
    ],
)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.arch)
def test_same_line_for_all(config, fields, line):
    if not fields.keys() <= config.__dataclass_fields__.keys():
        pytest.skip("has no such field")
    with pytest.raises(UserError) as error:
        config(**fields)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("config", "mults", "wanted"),
    [
        (UNetConfig, (1,) * 5, "1 to 4 values of 1 to 64"),
        (UNetConfig, (65,), "1 to 4 values of 1 to 64"),
        (SDDPMConfig, (), "1 to 8 values of 1 to 64"),
        (SDDPMConfig, (1, 65), "1 to 8 values of 1 to 64"),
        (AttentionUNetConfig, (1, 0), "1 to 8 positive values"),
        (AttentionUNetConfig, (1,) * 9, "1 to 8 positive values"),
    ],
)
def test_multipliers(config, mults, wanted):
    with pytest.raises(UserError) as error:
        config(ch_mult=mults)
    assert str(error.value) == f"--ch_mult={','.join(map(str, mults))}: give {wanted}, each once; {APPENDS}"
    assert AttentionUNetConfig(ch_mult=(65,), attn=()).ch_mult == (65,), "its multipliers have no upper bound"


@pytest.mark.parametrize("config", [UNetConfig, SDDPMConfig, FSDDIMConfig], ids=lambda config: config.arch)
def test_images_that_cannot_be_halved(config):
    with pytest.raises(UserError) as error:
        config(image_size=36, ch_mult=(1, 2, 2, 2))
    wanted = "--img_size=36: 4 resolution levels halve it 3 times, so it must be a multiple of 8"
    assert str(error.value) == wanted
    with pytest.raises(UserError, match="--img_size=32,36: 4 resolution levels .* multiple of 8"):
        config(image_size=(32, 36), ch_mult=(1, 2, 2, 2))
    size = config(image_size=(40.0, 24), ch_mult=(1.0, 2, 2, 2)).image_size
    assert size == (40, 24) and type(size.height) is int
