"""Train the network that will be converted.

    python ANN_train.py --flagfile config/train_ANN/demo.txt
    CUDA_VISIBLE_DEVICES=0 python ANN_train.py --flagfile config/train_ANN/CIFAR10.txt

Writes to --logdir: ckpt.pt, sample/, real.png, log.jsonl, TensorBoard events, flagfile.txt, with --eval_step best.pt.
The same command continues an interrupted run. --eval scores the raw and the averaged weights of ckpt.pt.
"""

from __future__ import annotations

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


def check_trainable(network, diffusion) -> None:
    """Raise UserError for what is trained elsewhere."""
    from ..stages.direct import is_direct

    require(not is_direct(network), f"--arch={FLAGS.arch}: a spiking network, which SNN_train.py trains")


def run_training(world) -> int:
    from ..cli import build, networks
    from ..stages import train

    if source := networks.load_initial():
        plan = build.training_from(source, world)
    else:
        plan = build.training(world, check_trainable)
    initial = networks.initial_weights(source, plan.network, world) if source else None
    return train.run(plan, build.train_options(initial))


def run_evaluation(world) -> int:
    """samples.png and samples_ema.png, and the scores of both sets of weights."""
    from ..cli import build, networks, scores
    from ..generate.classes import resolved
    from ..generate.sampling import check_generation
    from ..run.folder import CHECKPOINT
    from ..stages import evaluate

    sample = build.sample_config()
    scoring = evaluate.NO_SCORING if FLAGS.sample_only else scores.scoring(world.device)
    for weights, grid in (("net", "samples.png"), ("ema", "samples_ema.png")):
        source = networks.load_checkpoint(Path(FLAGS.logdir) / CHECKPOINT, weights)
        sample = resolved(source.net, sample)
        check_generation(source.net, sample)
        config = evaluate.EvalConfig(
            FLAGS.num_images, FLAGS.batch_size, grid=True, grid_images=256, grid_row=16, grid_path=grid
        )
        generation = evaluate.Generation(source, sample, world)
        evaluate.run(build.run_folder("evaluate", source), generation, config, scoring)
    return 0
