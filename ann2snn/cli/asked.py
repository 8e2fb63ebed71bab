"""Flags on the command line that a command would pass over: refused, as whoever types one expects something of it.

A flagfile may have them, since one can drive all commands.
"""

from __future__ import annotations

from ..config import SOME_TAKE, check_taken, require
from .flags import FLAGS, given, written

#: What only some commands do, by the flags that ask for it.
COMMANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("interpolate", "start", "inpaint", "invert", "score", "against"), ("evaluate",)),
    **dict.fromkeys(("metrics", "kid", "precision_recall", "trajectory", "make_stats", "score_data"), ("evaluate",)),
    **dict.fromkeys(("export", "export_nir", "fold_norms", "export_program", "export_onnx"), ("convert",)),
    "init_from": ("train",),
    "search_sigma_rel": ("evaluate",),
    "sigma_rel": ("evaluate", "convert"),
}
EXTRACTORS, BACKBONES = ("inception", "lite0", "none"), ("torchvision:", "timm:")
SCRIPTS = {"train": "ANN_train", "convert": "SNN_conversion", "evaluate": "evaluate"}
EDITS = ("inpaint", "invert")  # of the image of --start
PICTURES = ("interpolate", "start", *EDITS)
#: Flag → the flags one of which it belongs to. Its default asks for nothing.
PARTS = {
    "against": ("score",),
    "class_attributes": ("class_label",),
    "strength": ("start",),
    "resamples": ("inpaint",),
    "invert_iterations": ("invert",),
    "drawn_images": PICTURES,
    **dict.fromkeys(("trajectory_images", "trajectory_format"), ("trajectory",)),
    "pr_images": ("precision_recall", "kid", "metrics"),
    "pr_k": ("precision_recall", "score", "metrics"),
    "fad_mode": ("fad_encoder",),
}
#: Of these one is done at a time; --eval, which flagfiles have, gives way to them.
ACTIONS = ("interpolate", *EDITS, "score", "make_stats", "score_data", "sample_only", "search_sigma_rel")
#: How images are sampled; what is made of them; what they are scored with.
SAMPLING = ("sampler", "sampler_steps", "sampler_order", "eta", "skip_type", "clip_x0", "ddim_epsilon")
CALLS = ("guidance", "carry")
GENERATED = ("images_dir", "pic_or_not", "trajectory")
SCORES = ("metrics", "kid", "precision_recall")
OF_FAD = ("fad_encoder", "fad_stats")
DRAWN = (*GENERATED, *SCORES, *OF_FAD, "num_images", "fid_cache")
NO_NETWORK = (*GENERATED, *CALLS, "eval_model_path", "sigma_rel")
WANTED = ("class_label", "num_images", "seed")
#: Action → the flags that it passes over.
UNREAD: dict[str, tuple[str, ...]] = {
    "interpolate": (*DRAWN, "seed"),
    "start": DRAWN,
    "inpaint": DRAWN,
    "invert": (*DRAWN, "seed"),
    "sample_only": (*SCORES, *OF_FAD),
    "score": (*NO_NETWORK, *SAMPLING, *WANTED, "fid_cache", "pr_images"),
    "make_stats": (*NO_NETWORK, *SCORES),
    "score_data": NO_NETWORK,
    "search_sigma_rel": (*GENERATED, *SCORES, *OF_FAD, "sigma_rel"),
}
OF_SCORES = (*SAMPLING, *CALLS, "class_label", "fid_cache")  # that --search_sigma_rel=loss passes over


def check(command: str) -> None:
    """Raise UserError for flags that ask `command` for what another one does, or that belong to flags not given."""
    for name, commands in COMMANDS.items():
        scripts = [f"{SCRIPTS[command_name]}.py" for command_name in commands]
        message = f"{_as_given(name)}: only {' and '.join(scripts)} {'do' if commands[1:] else 'does'} that"
        require(command in commands or not _asks(name), f"{message}; drop it, or run {' or '.join(scripts)}")
    drawn = command == "evaluate" and not given("sampler") and any(FLAGS[name].value for name in PICTURES)
    for field, name in SOME_TAKE.items():
        if _asks(name) or (field == "steps" and name in FLAGS.by_hand):  # the default of other samplers is a wish here
            check_taken("ddim" if drawn else FLAGS.sampler, field, written(FLAGS[name].value))
    kind = FLAGS.extractor
    known = kind in EXTRACTORS or kind.startswith(BACKBONES)
    require(known, f"--extractor={kind}: use one of {', '.join(EXTRACTORS)}, or {' or '.join(BACKBONES)} and a name")
    unread = kind in EXTRACTORS and _asks("extractor_weights")
    require(
        not unread, f"{_as_given('extractor_weights')}: only with --extractor={'NAME or '.join(BACKBONES)}NAME; drop it"
    )
    if command != "evaluate":
        return
    given_actions = [name for name in ACTIONS if FLAGS[name].value]
    names = " and ".join(f"--{name}" for name in given_actions)
    require(len(given_actions) < 2, f"{names}: one at a time; drop all but one")
    for name in ACTIONS:
        message = f"--start: draws an image's variations; drop it or --{name}"
        require(name in EDITS or not (FLAGS[name].value and FLAGS.start), message)
    passed_over = [(action, name) for action, names in UNREAD.items() for name in names if FLAGS[action].value]
    passed_over += [("search_sigma_rel=loss", name) for name in OF_SCORES if FLAGS.search_sigma_rel == "loss"]
    for action, name in passed_over:
        require(not _asks(name), f"{_as_given(name)}: not with --{action}; drop one")
    for name, owners in PARTS.items():
        owner = " or ".join(f"--{owner}" for owner in owners)
        asks = any(FLAGS[owner].value for owner in owners)
        require(asks or not _asks(name), f"{_as_given(name)}: only with {owner}; drop it or add that")
    for name in ("score", "make_stats", "score_data"):
        message = f"{_as_given('autoencoder')}: of the network that makes images; drop it or --{name}"
        require(not (FLAGS[name].value and _asks("autoencoder")), message)
    varied = [name for name in EDITS if FLAGS[name].value]
    message = f"{_as_given('strength')}: of --start alone, not with --{' and --'.join(varied)}"
    require(not varied or not _asks("strength"), message)


def _asks(name: str) -> bool:
    return name in FLAGS.by_hand and FLAGS[name].value != FLAGS[name].default


def _as_given(name: str) -> str:
    flag = FLAGS[name]
    return f"--{name}" if flag.boolean else f"--{name}={written(flag.value)}"
