"""Fine-tune the converted network block by block, so that its stream schedule comes closer to the quantized ANN.

    python SNN_ft.py --flagfile config/SNN_ft/demo.txt
    python SNN_ft.py --flagfile config/SNN_ft/CIFAR10_snnft.txt
    python SNN_ft.py --flagfile config/SNN_train/sdm_cifar10.txt

Reads ckpt.pt in --logdir and the training images; writes SNN_<bit>bit_ft/ with model_best.pt, model_backpacks/,
ft_blocks_samples/, finetune.json, gap.json and cost.json. The same command continues an interrupted run at the next
block; --ft_name keeps several runs apart in one --logdir.

--ft_method=tsm makes SDM of the SDDPM that SNN_train.py left in --logdir: its weights are inherited, and trained on
with a learned factor per convolution and time step. Writes SDM_<S>T/, a run folder like that of a training.
"""

from __future__ import annotations

from ..cli import asked
from ..cli.flags import FLAGS, require_action


def main() -> int:
    require_action(FLAGS.fine_tune, "fine_tune")
    asked.check("finetune")
    from ..cli import build

    world, sample = build.world(), build.sample_config()
    return tune_tsm(world, sample) if FLAGS.ft_method == "tsm" else tune_blocks(world, sample)


def tune_tsm(world, sample) -> int:
    from ..cli import build, networks
    from ..generate import sampling
    from ..stages import direct

    source, steps = networks.load_pretrained()
    sampling.check_generation(source.net, sample)
    plan = build.tsm_training(source, sample, steps, world)
    code = direct.fine_tune(plan, source, steps, build.train_options())
    return code or direct.export(plan.folder, sample, world, FLAGS.gap_images, FLAGS.gen_images, FLAGS.batch_size)


def tune_blocks(world, sample) -> int:
    from ..cli import build, networks
    from ..generate import sampling
    from ..generate.classes import resolved
    from ..stages import finetune

    spiking = build.spiking_config(schedule="stream")
    source = networks.load_convertible()
    sample = resolved(source.net, sample)
    sampling.check_generation(source.net, sample.from_rest())
    dataset = build.inputs_for(source, world.device)
    folder = build.run_folder("finetune", source)
    return finetune.run(folder, source, dataset, spiking, build.finetune_config(), sample, world)
