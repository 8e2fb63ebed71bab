"""Train the network that will be converted.

    python ANN_train.py --flagfile config/train_ANN/demo.txt
    CUDA_VISIBLE_DEVICES=0 python ANN_train.py --flagfile config/train_ANN/CIFAR10.txt

Writes to --logdir: ckpt.pt, sample/, real.png, log.jsonl, TensorBoard events, flagfile.txt. The same command
continues an interrupted run. --eval scores the raw and the averaged weights of ckpt.pt.
"""

from __future__ import annotations

from ann2snn import build, flags
from ann2snn.flags import FLAGS
from ann2snn.stages import train

flags.define()


def main() -> int:
    build.require_action(FLAGS.train or FLAGS.eval, "train or --eval")
    device = build.device()
    if FLAGS.train:
        diffusion, sample, config = flags.diffusion_config(), build.sample_config(), build.train_config()
        sample.check_fits(diffusion)
        flags.unet_config(in_channels=3)  # refuse bad flags before the data are read
        dataset = build.dataset()
        schedule = train.Schedule(
            sample_step=FLAGS.sample_step,
            save_step=5000 if FLAGS.save_step is None else FLAGS.save_step,
            log_step=FLAGS.log_step,
            sample_size=FLAGS.sample_size,
            num_workers=FLAGS.num_workers,
        )
        network = flags.unet_config(dataset.channels)
        logdir = build.logdir("train")
        code = train.run(
            logdir, dataset, network, diffusion, config, sample, schedule, device, resume=FLAGS.resume, amp=FLAGS.amp
        )
        if code:
            return code
    return 0


if __name__ == "__main__":
    flags.run_script(main)
