"""Train the network that will be converted.

    python ANN_train.py --flagfile config/train_ANN/demo.txt
    CUDA_VISIBLE_DEVICES=0 python ANN_train.py --flagfile config/train_ANN/CIFAR10.txt

Writes to --logdir: ckpt.pt, sample/, real.png, log.jsonl, TensorBoard events, flagfile.txt. The same command
continues an interrupted run. --eval scores the raw and the averaged weights of ckpt.pt.
"""

from __future__ import annotations

from ann2snn import build, flags
from ann2snn.diffusion.process import check_sampling, network_channels
from ann2snn.flags import FLAGS
from ann2snn.stages import evaluate, train

flags.define()


def main() -> int:
    build.require_action(FLAGS.train or FLAGS.eval, "train or --eval")
    world = build.world()
    code = run_training(world) if FLAGS.train else 0
    return code or (run_evaluation(world) if FLAGS.eval else 0)


def run_training(world) -> int:
    diffusion, sample, config = flags.diffusion_config(), build.sample_config(), build.train_config()
    flags.network_config(in_channels=3)  # refuse bad flags before the data are read
    check_sampling(diffusion, FLAGS.img_size, sample)
    schedule = train.Schedule(
        sample_step=FLAGS.sample_step,
        save_step=5000 if FLAGS.save_step is None else FLAGS.save_step,
        log_step=FLAGS.log_step,
        sample_size=FLAGS.sample_size,
        num_workers=FLAGS.num_workers,
        eval_step=FLAGS.eval_step,
        score=build.scorer(sample, world) if FLAGS.eval_step else None,
    )
    dataset = build.dataset()
    network = flags.network_config(network_channels(diffusion, dataset.channels))
    logdir = build.logdir("train", world)
    return train.run(
        logdir, dataset, network, diffusion, config, sample, schedule, world, resume=FLAGS.resume, amp=FLAGS.amp
    )


def run_evaluation(world) -> int:
    """samples.png and samples_ema.png, and the scores of both sets of weights."""
    sample = build.sample_config()
    extractor, stats, fad = (None, None, None) if FLAGS.sample_only else build.scored_with(world.device)
    logdir = build.logdir("evaluate", world)
    for weights, grid in (("net", "samples.png"), ("ema", "samples_ema.png")):
        source = build.load_checkpoint(logdir / train.CHECKPOINT, weights)
        check_sampling(source.net.diffusion, source.net.image_size, sample)
        config = evaluate.EvalConfig(FLAGS.num_images, FLAGS.batch_size, None, True, 256, 16, grid)
        evaluate.run(logdir, source, sample, config, world, extractor, stats, stats_name=FLAGS.fid_cache, fad=fad)
    return 0


if __name__ == "__main__":
    flags.run_script(main)
