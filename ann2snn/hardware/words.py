"""Which functions of torch NIR has words for, how they take their arguments, and what to use in place of others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import upsample_nearest

ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}
DIFFERENCES = {torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__}
PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__}
SIGNS = {torch.neg, Tensor.neg, Tensor.__neg__}
JOINS = {torch.cat, torch.concat}
#: Functions that leave the order of values as it is.
VIEWS = {
    F.dropout, F.dropout2d, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.clone, torch.detach,
    Tensor.flatten, Tensor.reshape, Tensor.squeeze, Tensor.unsqueeze, Tensor.clone, Tensor.detach, Tensor.view,
    Tensor.contiguous, Tensor.to, Tensor.double, Tensor.__getitem__, Tensor.type_as, Tensor.view_as,
    Tensor.unflatten,
}  # fmt: skip
#: Functions that answer no tensor, but what one holds or, of `setitem`, by writing into one.
TELL = {"numpy", "tolist", "item", "bool", "float", "int", "index", "array", "contains", "equal", "setitem"}
MEANS = {torch.mean, Tensor.mean}
COPIES = {upsample_nearest, F.interpolate}
#: Which a neuron whose levels begin at 0 does by itself.
RECTIFIERS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
POOLS = {F.avg_pool2d, F.adaptive_avg_pool2d}

QUANTIZE = "put a quantizer in its place (ann2snn.quantize makes them ReLU-like), whose neuron NIR can express"
NO_PRODUCTS = "NIR has no product of two signals: use a network without attention (--arch=unet)"
REMEDIES = {
    **dict.fromkeys(
        ("group_norm", "layer_norm", "instance_norm", "rms_norm", "local_response_norm"),
        "its statistics are those of every input: train with batch norm (--norm=batch), which is an affine map",
    ),
    **dict.fromkeys(("scaled_dot_product_attention", "softmax", "matmul", "bmm", "einsum", "baddbmm"), NO_PRODUCTS),
    **dict.fromkeys(("silu", "gelu", "sigmoid", "tanh", "elu", "leaky_relu", "hardswish"), QUANTIZE),
    "relu": "put a quantizer with levels from 0 right behind it (ann2snn.quantize does, before a convolution)",
    **dict.fromkeys(("max_pool2d", "adaptive_max_pool2d"), "use average pooling, or a convolution with a stride"),
    **dict.fromkeys(("conv_transpose2d",), "use nearest-neighbour up-sampling and a convolution"),
}

#: Arguments, in their order.
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def bound(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict:
    return dict(zip(names, args, strict=False)) | kwargs


def pair(value: object) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values[0], values[-1]


def interpolation(args: tuple, kwargs: dict) -> str:
    return bound(("input", "size", "scale_factor", "mode"), args, kwargs).get("mode", "nearest")


def keeps_order(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether this call of one of `VIEWS` answers all values, in the order in which it got them."""
    if func is Tensor.__getitem__:
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(place is None or place is Ellipsis or place == slice(None) for place in places)
    if func in (F.dropout, F.dropout2d):
        return not bound(("input", "p", "training"), args, kwargs).get("training", func is F.dropout)
    return True


def name(func: Callable) -> str:
    return getattr(func, "__name__", str(func)).strip("_")
