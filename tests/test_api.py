"""The Python interface that the documentation shows."""

import doctest

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from tests.scripts import SAMPLING, check, script


def small(**changes):
    torch.manual_seed(0)
    config = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "image_size": 8, "in_channels": 1}
    return ann2snn.build_unet(**config | {"bit": 2} | changes).eval()


def test_docstring_example_runs():
    assert doctest.testmod(ann2snn).attempted >= 4 and doctest.testmod(ann2snn).failed == 0


def test_loaded_network_knows_itself(finished_run):
    ann = ann2snn.load(finished_run[0] / "ckpt.pt")
    assert (ann.in_channels, ann.image_size, ann.config.bits, ann.diffusion.diffusion_steps) == (1, (8, 8), 2, 50)
    assert not ann.training


def test_converted_file_comes_back_as_a_network_whose_schedule_can_be_overridden(finished_run):
    path = finished_run[0] / "converted_snn.pt"
    assert ann2snn.load(path).spiking.schedule == "layer_sync"
    stream = ann2snn.load(path, schedule="stream", settle_steps="auto")
    assert (stream.spiking.schedule, stream.spiking.settle_steps) == ("stream", "auto")
    with pytest.raises(TypeError, match="no converted network"):
        ann2snn.load(finished_run[0] / "ckpt.pt", schedule="stream")


def test_settled_stream_file_can_be_run_layer_by_layer(tmp_path):
    snn = ann2snn.convert(small(), schedule="stream", settle_steps="auto")
    checkpoint.save(tmp_path / "snn.pt", checkpoint.payload_of(snn))
    assert ann2snn.load(tmp_path / "snn.pt").spiking.settle_steps == "auto"
    assert ann2snn.load(tmp_path / "snn.pt", schedule="layer_sync").spiking.settle_steps == 0


def test_convert_options_and_refusals():
    assert ann2snn.convert(small()).spiking.schedule == "layer_sync"
    with pytest.raises(ann2snn.UserError, match="full-precision"):
        ann2snn.convert(small(bit=32))
    with pytest.raises(ann2snn.UserError, match="nothing to settle"):
        ann2snn.convert(small(), settle_steps=3)
    with pytest.raises(ValueError):  # UserError is one
        small(bit=9)


def test_sample_gives_8_bit_images_that_do_not_depend_on_the_batch():
    net = small().double()
    images = ann2snn.sample(net, n=5, steps=3, seed=7)
    assert images.dtype == torch.uint8 and images.shape == (5, 1, 8, 8)
    assert torch.equal(ann2snn.sample(net, n=5, steps=3, seed=7, batch_size=2), images)
    assert torch.equal(ann2snn.sample(net, n=3, steps=3, seed=7), images[:3])
    assert not torch.equal(ann2snn.sample(net, n=5, steps=3, seed=8), images)
    with pytest.raises(ann2snn.UserError, match="more than the 1000 diffusion steps"):
        ann2snn.sample(net, n=1, steps=1001)


def test_sampling_from_python_and_by_script_gives_the_same_images(finished_run, tmp_path):
    from ann2snn.generate.images import iter_folder

    logdir, _ = finished_run
    flags = ["--sample_only", "--num_images=4", f"--images_dir={tmp_path}/images", f"--logdir={tmp_path}", *SAMPLING]
    check(script("evaluate.py", *flags, f"--eval_model_path={logdir}/ckpt.pt", "--num_threads=1"))
    [images] = list(iter_folder(tmp_path / "images", 4))
    assert torch.equal(ann2snn.sample(ann2snn.load(logdir / "ckpt.pt"), n=4, steps=3), images)


def test_gap_of_layer_sync_is_zero_and_of_stream_is_not():
    net = small().double()
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([10, 900])
    assert ann2snn.gap(net, ann2snn.convert(net), x, t).prediction.error < 1e-12
    report = ann2snn.gap(net, ann2snn.convert(net, schedule="stream"), x, t)
    assert [row.block for row in report.rows()][0] == "head" and report.rows()[-1].block == "prediction"
    assert max(block.error for block in report.blocks) > 1e-6
