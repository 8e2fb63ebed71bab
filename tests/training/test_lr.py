"""The learning rate over a training."""

import pytest

from ann2snn.config import TrainConfig
from ann2snn.training.trainer import lr_factor


def config(decay: str) -> TrainConfig:
    return TrainConfig(lr_decay=decay, warmup=10, total_steps=1000)


@pytest.mark.parametrize("decay", ["none", "cosine", "cooldown"])
def test_it_warms_up_linearly(decay):
    assert [lr_factor(step, config(decay)) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]


def test_a_cooldown_is_linear_over_the_last_tenth():
    steps = (10, 500, 900, 925, 950, 1000, 1200)
    assert [lr_factor(step, config("cooldown")) for step in steps] == pytest.approx([1, 1, 1, 0.75, 0.5, 0, 0])


def test_a_cosine_is_half_down_halfway():
    assert [lr_factor(step, config("cosine")) for step in (10, 505, 1000)] == pytest.approx([1, 0.5, 0])
