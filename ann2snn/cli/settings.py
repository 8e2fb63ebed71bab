"""From flags to the settings of networks and processes, and back: what a checkpoint must agree with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import FULL_PRECISION, DiffusionConfig, ImageSize, UNetConfig, require
from ..data import attributes_of
from ..errors import UserError
from ..latent import Autoencoder
from ..nets.architecture import NetworkConfig
from ..nets.attention_unet import AttentionUNetConfig
from ..nets.diffusers_unet import DiffusersUNetConfig
from ..nets.direct import DirectConfig
from ..nets.fsddim import FSDDIMConfig
from ..nets.sddpm import SDDPMConfig
from .flags import FLAGS, given, written

# What a checkpoint remembers, by flag: a later stage stops where a flag given by hand disagrees.
OF_ALL = {"ch": "ch", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks", "img_size": "image_size"}
NETWORK_FLAGS = OF_ALL | {
    "bit": "bits",
    "weight_bit": "weight_bits",
    "weight_quant": "weight_quant",
    "norm_groups": "norm_groups",
    "spike_driven": "spike_driven",
    "norm": "norm",
    "norm_bins": "norm_bins",
    "T": "diffusion_steps",
}
ATTENTION_FLAGS = OF_ALL | {"norm_groups": "norm_groups", "attn": "attn", "block_size": "block_size"}
DIRECT_FLAGS = OF_ALL | {"T": "diffusion_steps", "timestep": "spike_steps", "surrogate": "surrogate"}
SDDPM_FLAGS = DIRECT_FLAGS | {"tsm": "tsm", "corrections": "corrections"}
FSDDIM_FLAGS = DIRECT_FLAGS | {name: name for name in ("decay", "soft_reset", "detach_reset", "norm")}
DIFFUSERS_FLAGS = {"img_size": "image_size", "bit": "bits", "ch": "ch"}
DIFFUSION_FLAGS = {
    "T": "diffusion_steps",
    "beta_1": "beta_1",
    "beta_T": "beta_T",
    "mean_type": "mean_type",
    "beta_schedule": "schedule",
    "zero_terminal_snr": "zero_terminal_snr",
    "process": "process",
    "cld_factor": "factor",
}
#: Architecture → its flags and its settings.
ARCHITECTURES: dict[str, tuple[dict[str, str], type[NetworkConfig]]] = {
    UNetConfig.arch: (NETWORK_FLAGS, UNetConfig),
    AttentionUNetConfig.arch: (ATTENTION_FLAGS, AttentionUNetConfig),
    SDDPMConfig.arch: (SDDPM_FLAGS, SDDPMConfig),
    FSDDIMConfig.arch: (FSDDIM_FLAGS, FSDDIMConfig),
    DiffusersUNetConfig.arch: (DIFFUSERS_FLAGS, DiffusersUNetConfig),
}
#: Flag → the value that asks for nothing. Other values of flags that an architecture does not have are refused.
NEUTRAL = {
    "bit": FULL_PRECISION, "weight_bit": FULL_PRECISION, "spike_driven": False, "block_size": 1,
    "tsm": False, "corrections": None, "decay": None, "norm": None, "threshold": None, "timestep": None,
    "surrogate": None, "soft_reset": None, "detach_reset": None, "recompute": False,
    "class_cond": False,
    "norm_bins": 1,
}  # fmt: skip


def unet_config(in_channels: int) -> UNetConfig:
    """The network the flags describe. Raises UserError."""
    fields: dict[str, Any] = {
        field: FLAGS[name].value for name, field in NETWORK_FLAGS.items() if FLAGS[name].value is not None
    }
    return UNetConfig(in_channels=in_channels, dropout=FLAGS.dropout, **fields)


def network_config(in_channels: int, downscale: int = 1) -> NetworkConfig:
    """The network the flags describe, of the architecture they name. Raises UserError.

    downscale: pixels of an image's side, --img_size, to one of what the network reads.
    """
    config = _on_images(in_channels)
    if downscale == 1:
        return config
    require(
        not any(n % downscale for n in FLAGS.img_size),
        f"--img_size={FLAGS.img_size}: must be a multiple of {downscale}, the "
        "pixels of an image's side to one of its latent's (--autoencoder)",
    )
    size = ImageSize(*(n // downscale for n in FLAGS.img_size))
    try:
        changed: Any = {"image_size": size}
        return replace(config, **changed)
    except UserError as error:
        raise UserError(f"{error} (the latents of --img_size={FLAGS.img_size} are {size})") from None


def _on_images(in_channels: int) -> NetworkConfig:
    """Of --img_size. Raises UserError."""
    table, kind = ARCHITECTURES[FLAGS.arch]
    if issubclass(kind, DiffusersUNetConfig):
        raise UserError("--arch=diffusers: has no weights to begin with; name them by --init_from")
    for name, plain in NEUTRAL.items():
        value = FLAGS[name].value
        has_it = name in table or (name == "bit" and kind is AttentionUNetConfig)
        has_it |= name == "class_cond" and hasattr(kind, "num_classes")
        has_it |= name in ("threshold", "recompute") and issubclass(kind, DirectConfig)
        require(
            has_it or not given(name) or value == plain,
            f"--{name}={written(value)}: --arch={FLAGS.arch} has no such setting; drop one of the two",
        )
    if issubclass(kind, UNetConfig):
        return unet_config(in_channels)
    # A flag without a value leaves the choice to the architecture.
    fields: dict[str, Any] = {
        field: FLAGS[name].value for name, field in table.items() if FLAGS[name].value is not None
    }
    if kind is AttentionUNetConfig and given("bit"):  # which quantizes it; the flag's default is another network's
        fields["bits"] = FLAGS.bit
    if issubclass(kind, DirectConfig) and FLAGS.threshold is not None:
        fields["threshold"] = FLAGS.threshold
    return kind(in_channels=in_channels, dropout=FLAGS.dropout, **fields)


def diffusion_config(autoencoder: Autoencoder | None = None) -> DiffusionConfig:
    """The process the flags describe, on images or in the autoencoder's latent space. Raises UserError."""
    fields: dict[str, Any] = {field: FLAGS[name].value for name, field in DIFFUSION_FLAGS.items()}
    default = FLAGS.process == "cld" and FLAGS.cld_factor == "R"
    linear_first = default if FLAGS.linear_first is None else FLAGS.linear_first
    fields |= {} if autoencoder is None else autoencoder.space
    return DiffusionConfig(var_type=FLAGS.var_type, linear_first=linear_first, **fields)


def effective_flags(config: NetworkConfig, diffusion: DiffusionConfig, trained_on: str | None) -> dict[str, object]:
    """Flag → value, of what a checkpoint decides, whatever the flags' defaults. trained_on: `Loaded.trained_on`."""
    table, _ = ARCHITECTURES[config.arch]
    flag_values = {"arch": config.arch} | {name: getattr(config, field) for name, field in table.items()}
    flag_values |= {name: getattr(diffusion, field) for name, field in DIFFUSION_FLAGS.items()}
    flag_values |= {"var_type": diffusion.var_type, "linear_first": diffusion.linear_first, "dropout": config.dropout}
    flag_values["img_size"] = config.image_size.times(diffusion.downscale)
    flag_values["class_cond"] = getattr(config, "num_classes", 0) > 0
    if trained_on == "celeba" and not given("class_attributes"):
        flag_values["class_attributes"] = attributes_of(getattr(config, "class_names", ()))
    if trained_on and not given("dataset_type"):
        flag_values["dataset_type"] = trained_on
    return {name: list(value) if type(value) is tuple else value for name, value in flag_values.items()}


def written_flagfile(effective: dict[str, object]) -> str:
    """A flagfile of this command: the settings it runs with, and as comments the flags that were given by hand.

    effective: flag → value, of those that a checkpoint decides.
    """
    given_flags = [FLAGS[name].serialize() for name in sorted(FLAGS) if given(name)]
    before = {name: FLAGS[name].value for name in effective}
    try:
        for name, value in effective.items():
            FLAGS[name].value = value
        settings = FLAGS.flags_into_string()
    finally:
        for name, value in before.items():
            FLAGS[name].value = value
    by_hand = [f"#   {line}" for flag in given_flags for line in flag.split("\n")]
    return settings + "\n".join(["# Of these, given on the command line or in a flagfile:", *by_hand]) + "\n"


_FIELDS = DIRECT_FLAGS | NETWORK_FLAGS | {"class_cond": "num_classes"}


def check_has(config: NetworkConfig, source: object, free: tuple[str, ...] = ()) -> None:
    """Raise UserError for a flag, not `free`, that asks for what no network of this architecture has."""
    for name, plain in NEUTRAL.items():
        field, value = _FIELDS.get(name, name), FLAGS[name].value
        has_it = hasattr(config, field) or name in (*free, "threshold", "recompute")  # these have checks of their own
        message = f"--{name}={written(value)}: {source} has --arch={config.arch}, and no such setting; drop the flag"
        require(has_it or not given(name) or value == plain, message)


def expected_fields() -> dict[str, tuple[str, object]]:
    """{config field: (flag name, value)} of those flags set by hand that a checkpoint must agree with."""
    # A network without attention has none of its fields: the published flagfiles' --attn contradicts nothing.
    tables = {"arch": "arch"}
    for table in (*(table for table, _ in ARCHITECTURES.values()), DIFFUSION_FLAGS):
        tables |= table
    expected = {field: (name, FLAGS[name].value) for name, field in tables.items() if given(name)}
    if FLAGS.linear_first is not None:
        expected["linear_first"] = ("linear_first", FLAGS.linear_first)
    if "corrections" in expected:  # kept in this order
        expected["corrections"] = ("corrections", sorted(FLAGS.corrections or ()))
    if "bits" in expected:
        bit = FLAGS.bit
        expected["bits"] = ("bit", int(bit) if bit == int(bit) else bit)
    return expected
