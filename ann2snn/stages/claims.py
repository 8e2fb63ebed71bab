"""Whose images a folder holds."""

from __future__ import annotations

import json
from pathlib import Path

from ..config import SpikingConfig
from ..data.decode import images_below
from ..errors import UserError
from ..files.atomic import write_text
from ..files.plain import read_text
from ..generate.images import existing_indices, index_of
from ..run.folder import SETTINGS

SETTINGS_BYTES = 2**20  # at most


def claim_folder(folder: Path, made_with: dict) -> None:
    """Remember in the folder how its images are made. Raises UserError if it holds images made otherwise.

    Or images that no run has numbered: programs that score whole folders would score them, too.
    """
    path = folder / SETTINGS
    strange = [image for image in images_below(folder) if image.parent != folder or index_of(image.name) is None]
    if strange:
        more = f" and {len(strange) - 1} more images" if len(strange) > 1 else ""
        raise UserError(
            f"{folder} holds {strange[0].relative_to(folder)}{more}, not named as evaluate.py names images: move what "
            "is not from this run elsewhere, or choose another --images_dir"
        )
    if not path.exists():
        if existing_indices(folder):
            raise UserError(f"{folder} holds numbered images of unknown origin: choose another --images_dir")
        write_text(path, json.dumps(made_with, indent=1) + "\n")
        return
    try:
        stored = json.loads(read_text(path, SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} is unreadable: choose another --images_dir") from None
    stored = stored if isinstance(stored, dict) else {}
    # Files written before these were settings lack them.
    stored = {"arch": "unet", "process": "vp", "sampler_options": {}} | stored
    stored = {"statistics": made_with.get("statistics")} | stored
    stored = stored | {"spiking": SpikingConfig.completed(stored.get("spiking"))}
    for name, value in made_with.items():
        if stored.get(name) != value:
            raise UserError(f"{folder} holds images made with {difference_text(name, stored.get(name), value)}: {CURE}")


CURE = "choose another --images_dir"
#: What a setting of a folder of images is called on the command line, where that is not its own name.
CALLED = {"checkpoint": "--eval_model_path", "network": "--eval_model_path", "step": "--eval_model_path"}
CALLED |= {"weights": "--eval_model_path", "bits": "--bit", "skip": "--skip_type", "order": "--sampler_order"}
CALLED |= {
    "statistics": "--analytic_images, --dataset_type",
    "spike_steps": "--timestep",
    "decay": "--lr_decay",
    "inputs": "--ft_inputs",
}


def difference_text(name: str, was: object, now: object) -> str:
    """Both values of a setting that differs, and its flag; of several settings in one, the first to differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(key for key in {**now, **was} if was.get(key) != now.get(key))
        return difference_text(inner, was.get(inner, "default"), now.get(inner, "default"))
    return f"{name}={was}, now {name}={now} ({CALLED.get(name, f'--{name}')})"
