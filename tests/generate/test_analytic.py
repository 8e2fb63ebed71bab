"""Analytic-DPM's statistics are those of one network, one sampler and one data set."""

from ann2snn.checkpoints.checkpoint import Loaded
from ann2snn.config import SampleConfig
from ann2snn.data import load_dataset
from ann2snn.generate.analytic import statistics_path
from tests.helpers import random_ann


def test_files_are_named_after_the_content_of_the_data_set(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"any")
    source, sample = Loaded(random_ann(ch=4, ch_mult=(1,)), tmp_path / "ckpt.pt"), SampleConfig("analytic_dpm", 5)
    train, test = (load_dataset("fashion_mnist_10k", "", 8, train=train) for train in (True, False))
    paths = {statistics_path(source, sample, 8, data) for data in (train, test, train.part(0, 100))}
    assert len(paths) == 3 and statistics_path(source, sample, 8, load_dataset("fashion_mnist_10k", "", 8)) in paths
