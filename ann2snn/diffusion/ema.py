"""Decay of the exponential moving average of a network's weights."""

from __future__ import annotations

from ..config import check_int, require


def ema_decay_at(step: int, decay: float, warmup: bool) -> float:
    """Decay d of the update average ← d·average + (1 − d)·weights.

    With `warmup` it is min(decay, (1 + step) / (10 + step)), so that the average forgets the first weights within
    tens of updates instead of 1 / (1 − decay) of them; TensorFlow's ExponentialMovingAverage with `num_updates`, as
    in ddpm-torch. A decay of 0.9999 is reached at step 89,990.

    step: updates of the average made before this one, 0 for the first.
    Raises UserError: step is negative or not whole, or decay is outside [0, 1).
    """
    step = check_int(step, "EMA step")
    require(step >= 0, f"EMA step={step}: use 0 or more")
    require(0 <= decay < 1, f"--ema_decay={decay}: use a value in [0, 1)")
    return min(decay, (1 + step) / (10 + step)) if warmup else decay
