"""What can be sampled, and which images a network can be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config import SampleConfig, require
from ..convert import SpikingNetwork
from ..data import to_model_range
from ..diffusion.process import image_shape, network_shape, require_vp
from ..errors import UserError
from ..latent import Autoencoder, autoencoder_for
from ..nets.architecture import Network

#: What samplers call. A module of a user's that knows its `in_channels`, `image_size` and `diffusion` counts as one.
Sampled = Network | SpikingNetwork


def check_sampled(net: object) -> Sampled:
    """Return `net`. Raises UserError for what no sampler can call."""
    missing = [name for name in ("in_channels", "image_size", "diffusion") if not hasattr(net, name)]
    require(
        isinstance(net, nn.Module) and not missing,
        f"net={type(net).__name__}: not a network that can be sampled; it lacks {', '.join(missing) or 'parameters'}",
    )
    return cast(Sampled, net)  # it has all that they ask for


def sampling(given_fields: dict[str, Any]) -> SampleConfig:
    """Fields of `SampleConfig` that a caller gives, DDIM in 50 steps unless asked otherwise.

    Raises UserError, also for one that the sampler would pass over.
    """
    settings: dict[str, Any] = {"sampler": "ddim", "steps": 50} | given_fields
    return SampleConfig(**settings).check_taken()


#: Settings of a network's calls, which all that sample have.
OF_CALLS = ("carry", "carry_steps", "amp", "tf32", "class_label", "guidance")


def check_settings(given_fields: dict[str, Any], what: str, allowed: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `SampleConfig` given for `what`. Raises UserError for one that it would pass over."""
    for name in given_fields:
        require(name in allowed, f"{name}: {what} has no such setting; it takes {', '.join(allowed)}")
    return given_fields


def check_call(net: object, args: tuple, kwargs: dict) -> None:
    """Raise UserError unless a denoiser of this program, converted or not, can be called so. Others take anything."""
    inner = net.net if isinstance(net, SpikingNetwork) else net
    if not isinstance(inner, Network) or len(args) > 3:
        return
    given = dict(zip(("x", "t"), args, strict=False)) | kwargs
    x, t = given.get("x"), given.get("t")
    weight = next(inner.parameters())
    shape = list(network_shape(inner))
    expected = f"{_kind(weight.dtype)} [N, {', '.join(map(str, shape))}] on {weight.device}"
    if (
        not isinstance(x, Tensor)
        or (x.layout, x.dtype, x.device) != (torch.strided, weight.dtype, weight.device)
        or not x.numel()
        or not (getattr(net, "currents", False) or list(x.shape[1:]) == shape)
    ):
        raise UserError(f"x: {_described(x)}, expected {expected}")
    if (
        not isinstance(t, Tensor)
        or t.is_complex()
        or t.dtype == torch.bool
        or (list(t.shape), t.device) != ([len(x)], x.device)
    ):
        raise UserError(f"t: {_described(t)}, expected the numbers of {len(x)} diffusion times on {x.device}")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    sparse = "" if value.layout == torch.strided else "sparse "
    return f"{sparse}{_kind(value.dtype)} {list(value.shape)} on {value.device}"


def check_edited(net: object, flag: str) -> Sampled:
    """Return `net`. Raises UserError where what `flag` does is undefined: for processes other than VP, on currents."""
    sampled = check_sampled(net)
    require_vp(sampled.diffusion, flag)
    require(not getattr(net, "currents", False), f"{flag} needs a network on images, not on synaptic currents")
    return sampled


def given_images(net: Sampled, images: Tensor, autoencoder: Autoencoder | None = None) -> Tensor:
    """What `net` is trained on, of uint8 images [N, C, H, W], N at least 1: these in [−1, 1], or latents of them.

    autoencoder: of a network on latents, None for its own. Raises UserError for images, or one, that do not fit it.
    """
    check_images(net, images)
    encoder = autoencoder_for(net, autoencoder)
    return to_model_range(images) if encoder is None else encoder.to(next(net.parameters()).device).encode(images)


def check_images(net: Sampled, images: Tensor) -> None:
    """Raise UserError for what is no images of the network's, uint8 [N, C, H, W], N at least 1."""
    shape = list(image_shape(net))
    tensor = isinstance(images, Tensor)
    description = type(images).__name__
    if tensor:
        description = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
    fits = tensor and images.dtype == torch.uint8 and images.dim() == 4 and list(images.shape[1:]) == shape
    require(fits and len(images) > 0, f"images: {description}, expected uint8 [N, {', '.join(map(str, shape))}]")
