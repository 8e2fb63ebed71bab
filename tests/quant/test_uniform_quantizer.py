"""The quantizer for any tensor: levels, gradients against Esser et al.'s equation by autograd, and fitted steps."""

import numpy as np
import pytest
import torch

import quant
from quant import UniformQuantizer, fit_step


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_scale(quantizer, scale, dtype=torch.float64):
    quantizer = quantizer.to(dtype)
    quantizer.scale.data.copy_(torch.as_tensor(scale, dtype=torch.float64))
    return quantizer


@pytest.mark.parametrize(("bits", "signed", "lo", "hi"), [(2, True, -2, 1), (2, False, 0, 3), (8, True, -128, 127)])
def test_levels_are_half_up_and_clipped_and_the_answer_is_step_times_level(bits, signed, lo, hi):
    quantizer = with_scale(UniformQuantizer(bits, signed=signed), 0.5)
    k = torch.arange(lo - 2, hi + 3, dtype=torch.float64)
    assert (quantizer.lo, quantizer.hi) == (lo, hi)
    assert torch.equal(quantizer.levels(k * 0.5), k.clamp(lo, hi))
    assert torch.equal(quantizer.levels((k - 0.5) * 0.5), k.clamp(lo, hi))  # ties go up, below zero too
    x = 3 * normal(1000)
    assert torch.equal(quantizer(x), quantizer.step() * quantizer.levels(x))


@pytest.mark.parametrize("axis", [1, -3, -1])
@pytest.mark.parametrize("signed", [True, False])
def test_a_step_per_channel_is_a_quantizer_per_channel(axis, signed):
    x = normal(2, 4, 5, 4)
    quantizer = with_scale(UniformQuantizer(3, signed, channels=4, axis=axis), [0.1, 0.2, 0.3, 0.4])
    assert torch.equal(quantizer(x), quantizer.step() * quantizer.levels(x))
    for channel, scale in enumerate([0.1, 0.2, 0.3, 0.4]):
        alone = with_scale(UniformQuantizer(3, signed), scale)
        assert torch.equal(quantizer(x).select(axis, channel), alone(x.select(axis, channel)))


def test_channels_may_lie_on_axis_1_of_any_tensor_but_must_be_there():
    quantizer = UniformQuantizer(4, channels=3)
    for shape in [(2, 3, 4, 4), (2, 3), (2, 3, 5)]:
        x = normal(*shape, dtype=torch.float32)
        assert torch.equal(quantizer(x), quantizer.step() * quantizer.levels(x))
    for shape in [(3,), (2, 4), (2, 1, 3)]:
        with pytest.raises(ValueError, match="3 channels on axis 1"):
            quantizer(torch.zeros(shape))


def rounded(v):
    """Half up, with the gradient of the identity."""
    return v + ((v + 0.5).floor() - v).detach()


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize(("signed", "grad_scale"), [(True, False), (False, False), (True, True)])
def test_gradients_are_those_of_learned_step_sizes(channels, signed, grad_scale):
    """Esser et al. 2020, equations 1 to 3, written down and differentiated by autograd."""
    x = normal(6, 4, 3).requires_grad_()
    scale = [0.3, 0.5, 0.7, 0.9] if channels else 0.4
    quantizer = with_scale(UniformQuantizer(3, signed, channels, grad_scale=grad_scale), scale)
    step = torch.as_tensor(scale, dtype=torch.float64).requires_grad_()
    shaped = step[:, None] if channels else step
    formula = rounded((x / shaped).clamp(quantizer.lo, quantizer.hi)) * shaped
    weights = normal(6, 4, 3, seed=1)
    want = torch.autograd.grad((formula * weights).sum(), (x, step))
    got = torch.autograd.grad((quantizer(x) * weights).sum(), (x, quantizer.scale))
    factor = quant.lsq_gradient_scale(x.numel() // (channels or 1), quantizer.hi) if grad_scale else 1.0
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(got[1], want[1] * factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_half_precision_is_quantized_in_float32_and_comes_back_as_it_was(dtype, own):
    """bfloat16 cannot tell 200 from 200.5; its levels must be those of the float32 values."""
    quantizer = with_scale(UniformQuantizer(8, signed=False), 0.0625, own)
    x = (16 * torch.rand(4096, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    exact = (x.detach().double() / 0.0625 + 0.5).floor().clamp(0, 255)
    assert quantizer.levels(x).dtype == torch.float32 and torch.equal(quantizer.levels(x).double(), exact)
    y = quantizer(x)
    assert y.dtype == dtype and torch.equal(y.double(), exact * 0.0625)
    y.sum().backward()
    assert x.grad.dtype == dtype and quantizer.scale.grad.dtype == own


def test_nan_stays_nan_and_a_scale_below_zero_stays_usable():
    quantizer = UniformQuantizer(4)
    x = torch.tensor([1.0, torch.nan])
    assert quantizer(x).isnan().tolist() == quantizer.levels(x).isnan().tolist() == [False, True]
    quantizer.scale.data.fill_(-1.0)
    assert quantizer.step().item() == pytest.approx(quant.MIN_SCALE) and quantizer(torch.ones(3)).isfinite().all()


def test_state_carries_the_range_and_refuses_other_bits():
    unsigned = with_scale(UniformQuantizer(4, signed=False), 0.25, torch.float32)
    loaded = UniformQuantizer(4)
    loaded.load_state_dict(unsigned.state_dict())
    assert (loaded.lo, loaded.hi, loaded.scale.item()) == (0, 15, 0.25)
    with pytest.raises(ValueError, match="3 bits"):
        UniformQuantizer(3).load_state_dict(unsigned.state_dict())


def test_arguments():
    assert UniformQuantizer(np.int64(4)).hi == 7
    for bits in (1, 9, 4.0, True, "4"):
        with pytest.raises(ValueError, match="bits"):
            UniformQuantizer(bits)
    with pytest.raises(ValueError, match="channels"):
        UniformQuantizer(4, channels=0)


@pytest.mark.parametrize(("lo", "hi"), [(-2, 1), (-8, 7), (0, 15), (0, 255)])
def test_fitted_steps_are_as_good_as_the_best_of_a_dense_search(lo, hi):
    values = torch.stack([normal(3000), 5 * normal(3000, seed=1).relu(), 0.01 * normal(3000, seed=2).exp()]).float()

    def error(step):
        levels = (values / step + 0.5).floor().clamp(lo, hi)
        return (levels * step - values).square().mean(1, keepdim=True)

    dense = torch.stack([error(values.abs().amax(1, keepdim=True) * f) for f in torch.logspace(-4.0, 0.1, 1500)])
    assert (error(fit_step(values, lo, hi)[:, None]) <= 1.02 * dense.amin(0)).all()


def test_percentile_and_rows_without_values():
    values = torch.stack([torch.arange(1.0, 1001.0), torch.zeros(1000), -torch.arange(1.0, 1001.0)])
    step = fit_step(values, -8, 7, "percentile", 90.0)
    assert step[0].item() == pytest.approx(900 / 7, rel=2e-3) and step[2].item() == pytest.approx(900 / 8, rel=2e-3)
    assert step[1] == step[0]  # a silent channel: the largest of the others
    assert fit_step(torch.zeros(2, 5), 0, 3).tolist() == [1.0, 1.0]
    assert fit_step(torch.ones(1, 5), 0, 4, "percentile", 100.0).item() == 0.25
