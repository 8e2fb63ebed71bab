"""bptt's gradient is the exact gradient of a smoothed network, and the spikes it is taken at are the real ones."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import convert
from ann2snn.finetune import (
    NETWORK,
    Networks,
    expand_neurons,
    make_subject,
    subject_loss,
    tied_proxy,
    trainable_parameters,
)
from ann2snn.finetune.subject import LEARNABLE
from ann2snn.kernels import IFState, if_scan
from tests.helpers import assert_equal, random_ann, random_batch

WINDOW = 3
signs = pytest.mark.parametrize("signed", [True, False])


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan(current, theta, charge, signed, smooth=False):
    return if_scan(current, IFState.rest(current[0], theta, charge), theta, signed, smooth)


@signs
def test_smooth_gradients_of_the_published_neuron_agree_with_finite_differences(signed):
    current = (values(0, 4, 2, 3, 2) * 0.8).requires_grad_()
    theta = (1 + values(1, 3, 1).abs()).requires_grad_()
    charge = (0.5 + 0.1 * values(2, 3, 1)).requires_grad_()
    given = (current, theta, charge)
    assert torch.autograd.gradcheck(lambda *given: scan(*given, signed, smooth=True), given, eps=1e-7, atol=1e-6)


@signs
def test_hard_spikes_are_the_same_with_and_without_a_gradient(signed):
    theta, charge = torch.tensor(0.9, dtype=torch.float64), 0.5
    current = values(3, 5, 2, 50)
    plain = scan(current, theta, charge, signed)
    learning = scan(current.clone().requires_grad_(), theta, charge, signed)
    assert learning.requires_grad and not plain.requires_grad
    assert_equal(learning.detach(), plain)
    assert set(plain.unique().tolist()) <= {-1.0, 0.0, 1.0} and plain.any()


@pytest.mark.parametrize("name", ["downblocks.0", "upblocks.1", "tail", NETWORK])
@pytest.mark.parametrize("stream_norm", ["cumulative", "per_step"])
def test_bptt_gradients_agree_with_finite_differences_of_the_smoothed_network(name, stream_norm):
    ann = random_ann()
    snn = convert(ann, SpikingConfig("stream", stream_norm=stream_norm))
    expand_neurons(snn, LEARNABLE, "channel")
    subject = make_subject(name, Networks(ann, snn, tied_proxy(ann, snn)))
    snn.clock.smooth = True
    example = subject.example(random_batch(ann))
    for kind in LEARNABLE:
        parameters = [p for module in subject.modules for p in trainable_parameters(module, (kind,)).values()]
        for parameter in snn.parameters():
            parameter.grad = None
        subject_loss(subject, example, "bptt").backward()
        directions = [values(i, *p.shape) for i, p in enumerate(parameters)]
        slope = sum(
            float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True) if p.grad is not None
        )
        step, losses = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += sign * step * d
                losses.append(float(subject_loss(subject, example, "bptt")))
                for p, d in zip(parameters, directions, strict=True):
                    p -= sign * step * d
        assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4), kind
        assert abs(slope) > 1e-9, kind
