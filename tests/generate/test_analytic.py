"""Analytic-DPM's statistics are those of one network, one sampler and one data set."""

import pytest
import torch

import ann2snn
from ann2snn.checkpoints.checkpoint import Loaded
from ann2snn.config import SampleConfig
from ann2snn.data import load_dataset
from ann2snn.distributed.world import ALONE
from ann2snn.generate.analytic import noise_statistics, statistics_name
from tests.helpers import random_ann


def test_files_are_named_after_the_content_of_the_data_set(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"any")
    source, sample = Loaded(random_ann(ch=4, ch_mult=(1,)), tmp_path / "ckpt.pt"), SampleConfig("analytic_dpm", 5)
    train, test = (load_dataset("fashion_mnist_10k", "", 8, train=train) for train in (True, False))
    paths = {statistics_name(source, sample, 8, data) for data in (train, test, train.part(0, 100))}
    assert len(paths) == 3 and statistics_name(source, sample, 8, load_dataset("fashion_mnist_10k", "", 8)) in paths


def test_python_measures_what_the_scripts_do(tmp_path):
    net, data = (
        random_ann(ch=4, ch_mult=(1,), in_channels=1, image_size=8).train(),
        load_dataset("fashion_mnist_10k", "", 8),
    )
    (tmp_path / "ckpt.pt").write_bytes(b"any")
    sample = SampleConfig("analytic_dpm", 5, seed=3)
    theirs = noise_statistics(Loaded(net, tmp_path / "ckpt.pt"), sample, lambda: data, 40, tmp_path / "run", ALONE)
    assert len(list((tmp_path / "run").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "run"]  # nothing beside the checkpoint
    images = torch.stack([data[i] for i in range(40)])
    net.train()
    ours = ann2snn.noise_statistics(net, images, steps=5, seed=3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert net.training
    made, other = (
        ann2snn.sample(net, 3, sampler="analytic_dpm", steps=5, statistics=statistics)
        for statistics in (ours, ours.clamp(max=0.2))
    )
    assert made.shape == (3, 1, 8, 8) and not torch.equal(made, other)


@pytest.mark.parametrize("images", [torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), None])
def test_python_refuses_what_is_no_image(images):
    with pytest.raises(ann2snn.UserError, match="images"):
        ann2snn.noise_statistics(random_ann(ch=4, ch_mult=(1,)), images)
