"""What the sampler of a setting takes, and whether it fits a process, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...config import SAMPLERS, SampleConfig, Sampler, require

__all__ = ["SAMPLERS", "Sampler", "check", "options_of"]


def options_of(
    sample: SampleConfig, statistics: Tensor | None = None, spike_steps: int | None = None, factor: str = "R"
) -> dict[str, object]:
    """The settings that the sampler of `sample` takes besides noise, clip and on_step."""
    values = {"statistics": statistics, "spike_steps": spike_steps, "factor": factor}
    return {
        name: values[name] if name in values else getattr(sample, name) for name in SAMPLERS[sample.sampler].options
    }


def check(name: str, process: object, **options: object) -> Sequence[float]:
    """The times of the sampler's network calls. Raises UserError before anything is computed.

    For an unknown sampler, an option it does not have, an unknown spacing, more steps than there are diffusion times,
    an order that does not exist or needs more calls, eta outside 0 to 1, missing statistics, a network on images
    where it needs one on currents, or a process that it cannot sample.
    """
    require(name in SAMPLERS, f"--sampler={name}: use one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    allowed = (*sampler.options, "steps")  # ddpm, which has no other number of them, may be told so
    surplus = [option for option in options if option not in allowed]
    require(not surplus, f"--sampler={name}: has no option {', '.join(surplus)}")
    missing = "steps" in sampler.options and options.get("steps") is None
    require(not missing, f"--sampler={name}: give the number of steps")
    return sampler.times(process, **options)
