"""What the fields of the settings are called on the command line, for messages that ask somebody to correct a flag."""

#: Field → flag, where that is not the field's own name.
FLAG_OF = {
    "bits": "bit",
    "weight_bits": "weight_bit",
    "image_size": "img_size",
    "diffusion_steps": "T",
    "schedule": "beta_schedule",
    "factor": "cld_factor",
    "spike_steps": "timestep",
    "in_channels": "channels",
    "out_channels": "var_type",
    "num_classes": "class_cond",
    "class_names": "class_cond",
}


def both_values(field: str, was: object, now: object) -> str:
    """Both values of a setting that differs, and its flag."""
    return f"{field}={was}, now {field}={now} (--{FLAG_OF.get(field, field)})"
