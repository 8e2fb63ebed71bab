"""The published integrate-and-fire neuron: if_neuron.

Spikes are compared exactly; spikes·θ and their time average within 1e-6 (float32).
"""

import pytest
import torch

from ann2snn.kernels import IFState, if_scan
from tests.helpers import assert_equal, golden

FILE = golden("if_neuron")
signs = pytest.mark.parametrize("sign", ["signed", "unsigned"])


def run(x: torch.Tensor, theta: float, sign: str) -> torch.Tensor:
    """x [N, T, F] → events [N, T, F]."""
    current, threshold = x.transpose(0, 1), torch.tensor(theta)
    state = IFState.rest(current[0], threshold)
    return if_scan(current, state, threshold, sign == "signed").transpose(0, 1)


@signs
@pytest.mark.parametrize("theta", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("steps", [3, 7, 15])
def test_spikes_output_and_average(steps, theta, sign):
    tag = f"T{steps}/th{theta}/{sign}"
    events = run(FILE[f"T{steps}/x"], theta, sign)
    assert_equal(events.to(torch.int8), FILE[f"{tag}/spikes"])
    torch.testing.assert_close(events * theta, FILE[f"{tag}/out"], rtol=1e-6, atol=0)
    torch.testing.assert_close(events.sum(1) * theta / steps, FILE[f"{tag}/last"], rtol=1e-6, atol=1e-7)


@signs
def test_membrane_exactly_at_the_threshold_and_at_zero(sign):
    assert_equal(run(FILE["ties/x"], 1.0, sign).to(torch.int8), FILE[f"ties/th1.0/{sign}/spikes"])


def test_signed_and_unsigned_goldens_differ():
    assert (FILE["T7/th1.0/signed/spikes"] < 0).any()
    assert (FILE["T7/th1.0/unsigned/spikes"] >= 0).all()
