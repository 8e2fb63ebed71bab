"""Training of networks for critically damped Langevin and blur diffusion."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .linear_process import LinearProcess


def training_times(process: LinearProcess, uniform: Tensor) -> Tensor:
    """Uniform draws [N] in [0, 1) as times in [t_min, 1); draw them on the CPU, in float64."""
    low = process.t_min
    return low + (1 - low) * uniform


def noise_error(
    net: Callable[[Tensor, Tensor], Tensor],
    process: LinearProcess,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    **options: str,
) -> Tensor:
    """(net(u_t, t) − ε)² per element, unweighted in time. `noise` ~ N(0, I) has the shape of the network's output.

    For CLD that is [N, 2C, *S]: positions and velocities both count, as in gDDIM with K = R; factor="L" trains for the
    Cholesky factor. The network gets t in the dtype and on the device of the images.
    """
    return (net(process.diffuse(x_0, t, noise, **options), t.to(x_0)) - noise) ** 2
