"""Flags on the command line that a command would pass over: refused, as whoever types one expects something of it.

A flagfile may have them, since one can drive all commands.
"""

from __future__ import annotations

from ..config import SOME_TAKE, check_taken, require
from .flags import FLAGS, given, written

#: What only one command does, by the flags that ask for it.
COMMANDS = {
    **dict.fromkeys(("interpolate", "start", "inpaint", "invert", "score", "against"), "evaluate"),
    **dict.fromkeys(("kid", "precision_recall", "trajectory", "make_stats", "score_data"), "evaluate"),
    **dict.fromkeys(("export", "export_nir", "export_program", "export_onnx"), "convert"),
    "init_from": "train",
}
SCRIPTS = {"train": "ANN_train", "convert": "SNN_conversion", "evaluate": "evaluate"}
PICTURES = ("interpolate", "start", "inpaint", "invert")
#: Flag → the flags one of which it belongs to. Its default asks for nothing.
PARTS = {
    "against": ("score",),
    "strength": ("start",),
    "resamples": ("inpaint",),
    "invert_iterations": ("invert",),
    "drawn_images": PICTURES,
    **dict.fromkeys(("trajectory_images", "trajectory_format"), ("trajectory",)),
    "pr_images": ("precision_recall", "kid"),
    "pr_k": ("precision_recall", "score"),
    "fad_mode": ("fad_encoder",),
}
#: Of these one is done at a time; --eval, which flagfiles have, gives way to them.
ACTIONS = ("interpolate", "inpaint", "invert", "score", "make_stats", "score_data", "sample_only")


def check(command: str) -> None:
    """Raise UserError for flags that ask `command` for what another one does, or that belong to flags not given."""
    for name, other in COMMANDS.items():
        message = f"{_told(name)}: only {SCRIPTS[other]}.py does that; drop it, or run {SCRIPTS[other]}.py"
        require(command == other or not _asks(name), message)
    drawn = command == "evaluate" and not given("sampler") and any(FLAGS[name].value for name in PICTURES)
    for field, name in SOME_TAKE.items():
        if _asks(name):
            check_taken("ddim" if drawn else FLAGS.sampler, field, written(FLAGS[name].value))
    if command != "evaluate":
        return
    asked = [name for name in ACTIONS if FLAGS[name].value]
    require(len(asked) < 2, f"{' and '.join(f'--{name}' for name in asked)}: one at a time; drop all but one")
    for name in ("interpolate", "score", "make_stats", "score_data", "sample_only"):
        require(not (FLAGS[name].value and FLAGS.start), f"--start: draws an image's variations; drop it or --{name}")
    for name, owners in PARTS.items():
        owner = " or ".join(f"--{owner}" for owner in owners)
        asks = any(FLAGS[owner].value for owner in owners)
        require(asks or not _asks(name), f"{_told(name)}: only with {owner}; drop it or add that")
    for name in ("score", "make_stats", "score_data"):
        told = f"{_told('autoencoder')}: of the network that makes images; drop it or --{name}"
        require(not (FLAGS[name].value and _asks("autoencoder")), told)
    varied = [name for name in ("inpaint", "invert") if FLAGS[name].value]
    told = f"{_told('strength')}: of --start alone, not with --{' and --'.join(varied)}"
    require(not varied or not _asks("strength"), told)


def _asks(name: str) -> bool:
    return name in FLAGS.by_hand and FLAGS[name].value != FLAGS[name].default


def _told(name: str) -> str:
    flag = FLAGS[name]
    return f"--{name}" if flag.boolean else f"--{name}={written(flag.value)}"
