"""Upsampling by 2 against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from ann2snn.kernels import upsample_nearest
from tests.helpers import assert_equal


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 1, 5), (2, 2, 3, 1), (0, 3, 2, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "expanded"])
def test_it_is_torchs_with_its_gradient(shape, layout):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.mT
    elif layout == "expanded":
        x = x[:, :1].expand(shape)
    x = x.requires_grad_()
    expected = F.interpolate(x, scale_factor=2, mode="nearest") if x.numel() else x.new_zeros(0, 3, 4, 4)
    actual = upsample_nearest(x)
    assert_equal(actual, expected)
    if x.numel():
        weights = torch.randn_like(actual)
        torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), x) for y in (actual, expected)))
