"""Train the network that will be converted.

    python ANN_train.py --flagfile config/train_ANN/demo.txt
    CUDA_VISIBLE_DEVICES=0 python ANN_train.py --flagfile config/train_ANN/CIFAR10.txt

Writes to --logdir: ckpt.pt, sample/, real.png, log.jsonl, TensorBoard events, flagfile.txt, with --eval_step best.pt.
The same command continues an interrupted run. --eval scores the raw and the averaged weights of ckpt.pt.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ..cli import asked
from ..cli.flags import FLAGS, require_action
from ..config import require


def main() -> int:
    require_action(FLAGS.train or FLAGS.eval, "train or --eval")
    asked.check("train")
    from ..cli import build

    world = build.world()
    code = run_training(world) if FLAGS.train else 0
    return code or (run_evaluation(world) if FLAGS.eval else 0)


def suits(network, diffusion) -> None:
    """Raise UserError for what is trained elsewhere."""
    from ..stages.direct import is_direct

    require(not is_direct(network), f"--arch={FLAGS.arch}: a spiking network, which SNN_train.py trains")


def run_training(world) -> int:
    from ..cli import build, networks
    from ..stages import train

    if source := networks.load_initial():
        plan = build.training_from(source, world)
    else:
        plan = build.training(world, suits)
    return train.run(
        *plan,
        resume=FLAGS.resume,
        amp=FLAGS.amp,
        initial=networks.initial_weights(source, plan.network, world) if source else None,
        accepted=lambda: build.logdir("train", world, source, plan.network),
    )


def run_evaluation(world) -> int:
    """samples.png and samples_ema.png, and the scores of both sets of weights."""
    from ..cli import build, networks
    from ..generate.classes import resolved
    from ..generate.sampling import check_generation
    from ..stages import evaluate, train

    sample = build.sample_config()
    extractor, stats, fad = (None, None, None) if FLAGS.sample_only else build.scored_with(world.device)
    logdir = Path(FLAGS.logdir)
    for weights, grid in (("net", "samples.png"), ("ema", "samples_ema.png")):
        source = networks.load_checkpoint(logdir / train.CHECKPOINT, weights)
        sample = resolved(source.net, sample)
        check_generation(source.net, sample)
        config = evaluate.EvalConfig(FLAGS.num_images, FLAGS.batch_size, None, True, 256, 16, grid)
        evaluate.run(
            *(logdir, source, sample, config, world, extractor, stats),
            stats_name=FLAGS.fid_cache,
            fad=fad,
            accepted=functools.partial(build.logdir, "evaluate", world, source),
        )
    return 0
