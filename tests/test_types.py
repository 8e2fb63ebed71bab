"""The program that `make types` checks also runs: annotations that no value has would be of no use."""

import pytest
import torch
from torch import nn

from tests.typed_program import convert_and_count, convert_own


@pytest.mark.slow
def test_the_program_of_the_type_checker_runs(tmp_path):
    spikes, pixels, first, gap, difference = convert_and_count(tmp_path)
    assert first > 0 and spikes > 0 and pixels == 32 * 32 and 0 <= gap < 1e-3 and difference == 0


def test_the_network_of_its_user_reads_spikes_but_for_the_first_layer():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    assert 0 < convert_own(net, torch.rand(2, 1, 8, 8)) < 1
