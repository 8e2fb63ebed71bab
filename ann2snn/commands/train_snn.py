"""Train a spiking network directly: SDDPM, or FSDDIM. SNN_ft.py --ft_method=tsm makes SDM of an SDDPM.

    python SNN_train.py --flagfile config/SNN_train/demo.txt
    CUDA_VISIBLE_DEVICES=0 python SNN_train.py --flagfile config/SNN_train/sddpm_cifar10.txt

Writes to --logdir what ANN_train.py writes, and after the last step trained_snn.pt (the averaged weights of the best
step that was scored, else of the last), cost.json, raster.npz and a grid. The same command continues an interrupted
run. --eval alone scores trained_snn.pt.
"""

from __future__ import annotations

from ..cli import asked
from ..cli.flags import FLAGS, require_action
from ..config import require


def main() -> int:
    require_action(FLAGS.train or FLAGS.eval, "train or --eval")
    asked.check("train_snn")
    from ..cli import build

    world = build.world()
    code = run_training(world) if FLAGS.train else 0
    return code or (run_evaluation(world) if FLAGS.eval else 0)


def check_trainable(network, diffusion) -> None:
    """Raise UserError for what is trained elsewhere."""
    from ..stages import direct

    require(
        direct.is_direct(network),
        f"--arch={FLAGS.arch}: SNN_train.py trains sddpm and fsddim; train with ANN_train.py and convert",
    )
    require(
        not diffusion.autoencoder,
        "--autoencoder: only for ANN_train.py and the stages after it; SNN_train.py trains on images",
    )
    require(diffusion.whole_steps, f"--process={diffusion.process}: --arch={FLAGS.arch} needs --process=vp")


def run_training(world) -> int:
    from ..cli import build
    from ..stages import direct, train

    plan = build.training(world, check_trainable)
    code = train.run(plan, build.train_options())
    return code or direct.export(plan.folder, plan.sample, world, FLAGS.gap_images, FLAGS.gen_images, FLAGS.batch_size)


def run_evaluation(world) -> int:
    """The score of trained_snn.pt, and its first images as a grid."""
    from ..cli import build, networks, scores
    from ..generate.sampling import check_generation
    from ..stages import direct, evaluate

    sample = build.sample_config()
    source = networks.load_network()
    require(direct.is_direct(source.net.config), f"{source.path} is no network of SNN_train.py: use evaluate.py")
    check_generation(source.net, sample)
    scoring = evaluate.NO_SCORING if FLAGS.sample_only else scores.scoring(world.device)
    config = evaluate.EvalConfig(FLAGS.num_images, FLAGS.batch_size, FLAGS.images_dir, True, FLAGS.gen_images)
    generation = evaluate.Generation(source, sample, world)
    return evaluate.run(build.run_folder("evaluate", source), generation, config, scoring)
