"""Images between those of two seeds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import SampleConfig, check_limits, check_seed, require
from ..diffusion import ImageNoise, options_of
from ..diffusion.process import network_shape
from ..latent import Autoencoder
from .classes import without_class
from .noise import slerp
from .sampling import Given, check_generation, generate
from .subject import check_sampled, sampling


def interpolate(
    net: nn.Module, seed_a: int, seed_b: int, n: int, *, autoencoder: Autoencoder | None = None, **settings: Any
) -> Tensor:
    """n images, uint8 [n, C, H, W], whose noise goes from that of seed_a's image 0 to that of seed_b's (`slerp`).

    settings: fields of `SampleConfig`; a sampler that draws no noise on the way, DDIM in 50 steps unless asked
    otherwise. autoencoder: as of `ann2snn.sample`. Raises UserError for another sampler, and as that does.
    """
    net = check_sampled(net)
    n = check_limits("n", n, "n")
    seeds = [check_seed(seed, name) for name, seed in (("seed_a", seed_a), ("seed_b", seed_b))]
    require("seed" not in settings, f"seed={settings.get('seed')}: interpolate has two, seed_a and seed_b")
    config = without_class(net, sampling(settings))
    check_generation(net, config)
    require(
        not draws_noise(config),
        f"--sampler={config.sampler}, --eta={config.eta:g}: draws noise on the way, so that images of neighbouring "
        "noise would not be neighbours; use ddim with --eta=0 or a solver",
    )
    first, last = (ImageNoise(seed, [0], network_shape(net), "cpu")()[0] for seed in seeds)
    return generate(net, config, range(n), Given(x_T=slerp(first, last, n), autoencoder=autoencoder))


def draws_noise(config: SampleConfig) -> bool:
    """Whether a sampler draws noise after the first."""
    return config.kind.draws_noise(options_of(config))
