"""Frozen, validated settings. Below the scripts nothing reads a command-line flag: it reads one of these.

Every field is checked on construction, so that a bad value stops a run before anything is computed or written.
"""

from .checks import (
    FULL_PRECISION,
    LIMITS,
    MAX_IMAGE_SIZE,
    MAX_MULT,
    check_accumulate,
    check_bits,
    check_ft_name,
    check_int,
    check_limits,
    check_number,
    check_seed,
    make_plain,
    require,
)
from .classes import CLASS_DROPOUT, NO_CLASS, check_class_label, check_classes, check_guidance, class_index
from .diffusion import BETA_SCHEDULES, MEAN_TYPES, PROCESSES, VAR_TYPES, DiffusionConfig
from .direct import CORRECTION_NAMES, SURROGATE_NAMES, DirectSpiking
from .network import ARCHS, UNetConfig
from .sampling import CORRECTORS, DDIM_EPSILONS, IMAGE_SAMPLERS, SAMPLER_NAMES, SDE_SAMPLERS, SKIPS, SampleConfig
from .spiking import AUTO, FROZEN, IF_NEURONS, MAX_BURST, SCHEDULES, STREAM_NORMS, SpikingConfig, check_carry_steps
from .training import (
    DATASET_TYPES,
    FT_INPUTS,
    FT_METHODS,
    LOSS_TYPES,
    LOSS_WEIGHTS,
    RESIDENT,
    RESUME_WITH,
    TrainConfig,
    check_resume_with,
)

__all__ = [
    "ARCHS",
    "AUTO",
    "BETA_SCHEDULES",
    "CLASS_DROPOUT",
    "CORRECTION_NAMES",
    "CORRECTORS",
    "DATASET_TYPES",
    "FROZEN",
    "FT_INPUTS",
    "FT_METHODS",
    "DDIM_EPSILONS",
    "FULL_PRECISION",
    "IF_NEURONS",
    "IMAGE_SAMPLERS",
    "LIMITS",
    "LOSS_TYPES",
    "LOSS_WEIGHTS",
    "MAX_BURST",
    "MAX_IMAGE_SIZE",
    "MAX_MULT",
    "MEAN_TYPES",
    "NO_CLASS",
    "PROCESSES",
    "RESIDENT",
    "RESUME_WITH",
    "SAMPLER_NAMES",
    "SCHEDULES",
    "SDE_SAMPLERS",
    "SKIPS",
    "STREAM_NORMS",
    "SURROGATE_NAMES",
    "VAR_TYPES",
    "DiffusionConfig",
    "DirectSpiking",
    "SampleConfig",
    "SpikingConfig",
    "TrainConfig",
    "UNetConfig",
    "check_accumulate",
    "check_bits",
    "check_class_label",
    "check_classes",
    "check_guidance",
    "class_index",
    "check_carry_steps",
    "check_ft_name",
    "check_int",
    "check_limits",
    "check_number",
    "check_resume_with",
    "check_seed",
    "make_plain",
    "require",
]
