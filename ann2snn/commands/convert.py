"""Convert ckpt.pt into an integrate-and-fire network.

    python SNN_conversion.py --flagfile config/SNN_convert/demo.txt
    python SNN_conversion.py --flagfile config/SNN_convert/CIFAR10_snn.txt

Reads ckpt.pt in --logdir; writes converted_snn.pt, gap.json, cost.json, raster.npz and images/. --export adds a folder
to hand on: weights, settings, and a card of what was measured; --export_nir the graph for hardware; --export_onnx and
--export_program files that run without this program. Nothing is trained: the weights are those of the quantized
network. The tables it prints say how far the spiking network is from it under each schedule, and what each costs in
operations, energy and time steps.
"""

from __future__ import annotations

from pathlib import Path

from ..cli import asked
from ..cli.flags import FLAGS, require_action


def main() -> int:
    require_action(FLAGS.eval, "eval")
    asked.check("convert")
    from ..cli import build, networks
    from ..generate.classes import resolved
    from ..generate.sampling import check_generation
    from ..stages import convert

    world, sample, spiking = build.world(), build.sample_config(), build.spiking_config()
    nir_file = build.nir_file()
    source = networks.load_convertible()
    sample = resolved(source.net, sample)
    check_generation(source.net, sample.from_rest())
    config = convert.ConvertConfig(
        grid_images=FLAGS.gen_images,
        gap_images=FLAGS.gap_images,
        batch_size=FLAGS.batch_size,
        spike_chunk=FLAGS.spike_chunk,
        exported=Path(FLAGS.export) if FLAGS.export else None,
        nir_file=nir_file,
        programs=[
            (kind, Path(path))
            for kind, path in (("program", FLAGS.export_program), ("onnx", FLAGS.export_onnx))
            if path
        ],
    )
    return convert.run(build.run_folder("convert", source), source, spiking, sample, config, world)
