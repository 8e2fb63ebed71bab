"""Flags of the pictures that evaluate.py draws: --interpolate, --start, --inpaint, --invert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints import checkpoint
from ..checkpoints.seal import content_hash
from ..config import SampleConfig, check_seed, require
from ..distributed.runtime import prepare_folder
from ..distributed.world import World
from ..errors import UserError
from ..files.atomic import file_hash
from ..generate.classes import resolved, without_class
from ..generate.subject import check_edited
from ..stages import draw
from . import build, networks
from .flags import FLAGS, given


def run(world: World) -> int:
    """Draw what the flags ask for. Raises UserError."""
    actions = [name for name in ("interpolate", "inpaint", "invert") if FLAGS[name].value]
    require(world.size == 1, "--nproc, --parallel: one process draws pictures; drop the flag")
    action = actions[0] if actions else "start"
    sample = sampling(action)
    seeds = two_seeds() if action == "interpolate" else None
    source = networks.load_network()
    if seeds is None:
        check_edited(source.net, f"--{action}")
    sample = resolved(source.net, without_class(source.net, sample))
    prepare_folder(FLAGS.logdir)
    canvas = draw.Canvas(build.run_folder("evaluate", source), source, sample, world)
    if seeds is not None:
        return draw.draw_interpolation(canvas, seeds, FLAGS.drawn_images)
    subject = given_images(source)
    if action == "start":
        return draw.draw_edit(canvas, subject, FLAGS.strength)
    if action == "invert":
        return draw.draw_inversion(canvas, subject, FLAGS.invert_iterations)
    mask_file = Path(FLAGS.inpaint)
    mask = draw.read_mask(mask_file, source.net)
    return draw.draw_inpainting(canvas, subject, mask, FLAGS.resamples, file_hash(mask_file)[:8])


def sampling(action: str) -> SampleConfig:
    """The sampler of the flags, or ddim where none is given; the only one that the action has, where it has one."""
    sample = build.sample_config() if given("sampler") else replace(build.sample_config(), sampler="ddim")
    if action not in ("inpaint", "invert"):
        return sample
    only = "ddpm_strided" if action == "inpaint" else "ddim"
    require(
        not given("sampler") or sample.sampler == only, f"--sampler={sample.sampler}: --{action} works with {only} only"
    )
    require(not given("eta") or not sample.eta, f"--eta={sample.eta:g}: --{action} draws no noise; use --eta=0")
    clips = action == "invert" and given("clip_x0") and sample.clip
    require(not clips, "--clip_x0: --invert clips nothing; use --noclip_x0")
    plain = replace(sample, sampler=only, eta=0.0)
    return replace(plain, clip=False) if action == "invert" else plain


def two_seeds() -> tuple[int, int]:
    """Those of --interpolate. Raises UserError."""
    texts = FLAGS.interpolate
    try:
        first, last = (check_seed(int(text)) for text in texts if text.isascii() and text.isdecimal())
    except (UserError, ValueError):
        raise UserError(f"--interpolate={','.join(texts)}: give two seeds, as --interpolate=1,2") from None
    return first, last


def given_images(source: checkpoint.Loaded) -> draw.Subject:
    """--start, as often as pictures are drawn; else the first images that the network was trained on."""
    count = FLAGS.drawn_images
    if FLAGS.start:
        return draw.read_subject(Path(FLAGS.start), source.net, count)
    data = build.dataset_for(source)
    images = torch.stack([data[i] for i in range(min(count, len(data)))])
    return draw.Subject(images, f"{data.name}_{content_hash({'images': images}).removeprefix('sha256:')[:8]}")
