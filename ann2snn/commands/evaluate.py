"""Generate images with a network, ANN or SNN, and score them.

    python evaluate.py --flagfile config/SNN_evaluate/demo.txt
    python evaluate.py --flagfile config/SNN_evaluate/CIFAR10_snn.txt
    python evaluate.py --eval --logdir logs/RUN --eval_model_path logs/RUN/ckpt.pt --sample_only --num_images 64
    python evaluate.py --make_stats --dataset_type cifar10 --fid_cache stats/cifar10.train.npz
    python evaluate.py --interpolate 1,2 --eval_model_path fashion-mnist-32-4bit --logdir logs/RUN

Images are saved before they are scored, named by index, and not generated twice. Each score is one line of
snn_eval.txt in --logdir, with every setting that makes it comparable.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import asked
from ..cli.flags import FLAGS, require_action

if TYPE_CHECKING:
    from ..distributed.world import World


def main() -> int:
    drawing = FLAGS.interpolate or FLAGS.start or FLAGS.inpaint or FLAGS.invert
    actions = FLAGS.eval or FLAGS.sample_only or FLAGS.make_stats or FLAGS.score_data or FLAGS.score or drawing
    actions = actions or FLAGS.search_sigma_rel
    require_action(actions, "eval, --sample_only, --make_stats, --score_data or --score")
    asked.check("evaluate")
    from ..cli import build, comparison, drawings, real_images, scores, widths

    scores.metric_names()  # a name that is none stops it now
    world = build.world()
    if drawing:
        return drawings.run(world)
    if FLAGS.score:
        return comparison.run(world)
    if FLAGS.search_sigma_rel:
        return widths.run(world)
    if FLAGS.make_stats:
        return real_images.make_stats(world)
    return real_images.score_data(world) if FLAGS.score_data else _generate(world)


def _generate(world: World) -> int:
    from ..cli import build, networks, scores
    from ..generate.analytic import noise_statistics
    from ..generate.classes import resolved
    from ..generate.sampling import check_generation
    from ..stages import evaluate

    sample = build.sample_config()
    config = evaluate.EvalConfig(
        FLAGS.num_images,
        FLAGS.batch_size,
        FLAGS.images_dir,
        FLAGS.pic_or_not,
        FLAGS.gen_images,
        trajectory=FLAGS.trajectory_images if FLAGS.trajectory else 0,
        trajectory_format=FLAGS.trajectory_format,
    )
    source = networks.load_network()
    sample = resolved(source.net, sample)
    inputs = partial(build.inputs_for, source, world.device)
    statistics = noise_statistics(source, sample, inputs, FLAGS.analytic_images, Path(FLAGS.logdir), world)
    check_generation(source.net, sample, statistics)
    scoring = evaluate.NO_SCORING
    if not FLAGS.sample_only:
        # Before the sampling: a missing file must stop it now.
        scoring = scores.scoring(world.device, lambda: build.of_class(build.dataset_for(source), source.net))
    generation = evaluate.Generation(source, sample, world, statistics)
    return evaluate.run(build.run_folder("evaluate", source), generation, config, scoring)
