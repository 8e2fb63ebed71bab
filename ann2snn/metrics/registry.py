"""The metrics that `--metrics` and `ann2snn.score` know, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..config import require
from .fad import FadMetric
from .frechet_metric import FrechetMetric
from .inception_score import InceptionMetric
from .kid import KidMetric
from .metric import Metric, Need, Setting
from .neighbours import NeighbourMetric

#: Name → metric; figures are shown in this order.
METRICS: dict[str, type[Metric]] = {
    "fd": FrechetMetric,
    "is": InceptionMetric,
    "kid": KidMetric,
    "prdc": NeighbourMetric,
    "fad": FadMetric,
}


def known(names: Sequence[object], source: str) -> tuple[str, ...]:
    """The names, each once, in the order of the table. source: as a message calls them. Raises UserError for others."""
    listed = [names] if isinstance(names, str) else names
    require(isinstance(listed, Sequence), f"{source} is a {type(listed).__name__}: give a list of names")
    for name in listed:
        require(
            isinstance(name, str) and name in METRICS,
            f"{source}: no metric is called {str(name)[:80]!r}; use any of {', '.join(METRICS)}",
        )
    return tuple(name for name in METRICS if name in listed)


def needs(names: Iterable[str], need: Need) -> bool:
    """Whether one of these metrics needs that."""
    return any(need in METRICS[name].needs for name in names)


def made(names: Iterable[str], setting: Setting) -> list[Metric]:
    """The metrics, ready to be given images. Raises UserError where one cannot be computed."""
    return [METRICS[name](setting) for name in names]


def settings_of_all() -> tuple[str, ...]:
    """Names of the settings that results of any metric have."""
    return tuple(name for metric in METRICS.values() for name in metric.settings)


def lower_is_better() -> tuple[str, ...]:
    """How the names of those figures begin of which less is better."""
    return tuple(start for metric in METRICS.values() for start in metric.lower)
