import math

import pytest

from ann2snn.diffusion.ema import ema_decay_at
from ann2snn.errors import UserError


def test_average_of_a_constant_one_approaches_it_as_published():
    average, seen = 0.0, []
    for step in range(3):
        decay = ema_decay_at(step, 0.9999, warmup=True)
        average = decay * average + (1 - decay) * 1.0
        seen.append(average)
    assert seen == pytest.approx([0.9, 0.9 + 0.1 * 9 / 11, 1 - 0.1 * 2 / 11 * 3 / 12], rel=1e-12)
    assert [round(value, 5) for value in seen] == [0.9, 0.98182, 0.99545]


def test_first_update_keeps_a_tenth_and_the_full_decay_is_reached_at_step_89990():
    assert ema_decay_at(0, 0.9999, warmup=True) == 0.1
    assert ema_decay_at(89_989, 0.9999, warmup=True) < 0.9999
    assert all(ema_decay_at(step, 0.9999, warmup=True) == 0.9999 for step in (89_990, 89_991, 10**7))


def test_warm_up_never_falls_and_never_exceeds_the_decay():
    decays = [ema_decay_at(step, 0.99, warmup=True) for step in range(2000)]
    assert decays == sorted(decays)
    assert max(decays) == decays[-1] == 0.99
    assert ema_decay_at(0, 0.05, warmup=True) == 0.05


@pytest.mark.parametrize("step", [0, 5, 10**6])
def test_without_warm_up_the_decay_is_constant(step):
    assert ema_decay_at(step, 0.9999, warmup=False) == 0.9999


@pytest.mark.parametrize(("step", "decay"), [(-1, 0.9), (0.5, 0.9), (0, 1.0), (0, -0.1), (0, math.nan)])
@pytest.mark.parametrize("warmup", [True, False])
def test_impossible_values_are_refused(step, decay, warmup):
    with pytest.raises(UserError):
        ema_decay_at(step, decay, warmup)
