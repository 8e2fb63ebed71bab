"""What images are scored with, from the flags."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..config import require
from ..data import ImageDataset
from ..metrics import registry
from ..metrics.compare import chosen
from ..metrics.extractors import make_extractor
from ..metrics.fad import FadExtractor, read_fad_stats
from ..metrics.fad_encoder import load_autoencoder
from ..metrics.features import FeatureExtractor
from ..metrics.inception_score import gives_logits
from ..metrics.metric import Need, Reference, Setting
from ..metrics.stats_file import ReferenceStatistics, read_stats
from ..stages.evaluate import require_spread
from ..stages.generation import RealImages, Scoring
from .flags import FLAGS

#: Metrics that have a flag of their own, which adds them.
OWN_FLAGS = {"kid": "kid", "prdc": "precision_recall", "fad": "fad_encoder"}


def asked(all_commands: bool = False) -> tuple[str, ...]:
    """The metrics that flags name. all_commands: by flags that only evaluating has not. Raises UserError."""
    own = [name for name, flag in OWN_FLAGS.items() if FLAGS[flag].value and (name == "fad" or not all_commands)]
    if FLAGS.fad_stats is not None:
        own.append("fad")
    return registry.known([*own, *(() if all_commands else FLAGS.metrics or ())], "--metrics")


def _check_features(names: tuple[str, ...]) -> None:
    """Raise UserError where metrics need features, and there is no extractor."""
    for name in names:
        flag = f"--{OWN_FLAGS[name]}" if name in OWN_FLAGS and FLAGS[OWN_FLAGS[name]].value else f"--metrics={name}"
        needed = Need.FEATURES in registry.METRICS[name].needs
        require(FLAGS.extractor != "none" or not needed, f"{flag} needs features: drop --extractor=none")


def extractor(device: torch.device) -> FeatureExtractor:
    """The feature network the flags name. Raises UserError if its weights are not to be had."""
    require(FLAGS.extractor != "none", "--extractor=none gives no features: use inception or lite0")
    return make_extractor(FLAGS.extractor, FLAGS.inception_weights, FLAGS.lite0_size, device, FLAGS.extractor_weights)


def extractor_and_stats(device: torch.device) -> tuple[FeatureExtractor, ReferenceStatistics]:
    """The feature network and the reference statistics made with it. Raises UserError."""
    features = extractor(device)
    return features, read_stats(FLAGS.fid_cache, features.name, features.dim)


def scoring(device: torch.device, data: Callable[[], ImageDataset] | None = None) -> Scoring:
    """What images are scored with: by the metrics that are asked for, and without --metrics by the usual ones.

    data: training images, for metrics that compare with them; None: in a command that has none of these. Raises
    UserError.
    """
    require_spread(FLAGS.num_images)
    names, listed = asked(data is None), bool(FLAGS.metrics) and data is not None
    _check_features(names)
    usual = not listed and FLAGS.extractor != "none"
    features = extractor(device) if usual or registry.needs(names, Need.FEATURES) else None
    if usual and features is not None:
        names = registry.known(["fd", *(["is"] if gives_logits(features) else []), *names], "--metrics")
    require(bool(names), "--extractor=none leaves no score: add --fad_encoder and --fad_stats")
    stats, real = None, None
    if features is not None and registry.needs(names, Need.STATISTICS):
        stats = read_stats(FLAGS.fid_cache, features.name, features.dim)
    autoencoder = fad(device) if registry.needs(names, Need.AUTOENCODER) else None
    if data is not None and registry.needs(names, Need.REAL):
        real = RealImages(data(), FLAGS.pr_images or FLAGS.num_images)
    return Scoring(names, features, stats, FLAGS.fid_cache, real, autoencoder, FLAGS.pr_k)


def fad_extractor(device: torch.device) -> FadExtractor:
    """The autoencoder that --fad_encoder names, in --fad_mode. Raises UserError."""
    require(FLAGS.fad_encoder is not None, "the FAD needs an autoencoder: add --fad_encoder")
    return FadExtractor(load_autoencoder(FLAGS.fad_encoder), FLAGS.fad_mode, device)


def require_fad_stats() -> None:
    """Raise UserError unless the file of the FAD's statistics has a name."""
    require(FLAGS.fad_stats is not None, "the FAD needs statistics: add --fad_stats")


def fad(device: torch.device) -> Reference:
    """What the FAD is measured with. Raises UserError."""
    require(FLAGS.fad_encoder is not None, "the FAD needs an autoencoder: add --fad_encoder")
    require_fad_stats()
    encoder = fad_extractor(device)
    return Reference(encoder, read_fad_stats(FLAGS.fad_stats, encoder), FLAGS.fad_stats)


def comparison(device: torch.device) -> tuple[tuple[str, ...], Setting]:
    """The metrics of `--score A --against B`, without --metrics all that can be computed; and how. Raises UserError."""
    require(FLAGS.fad_stats is None, "--fad_stats: --score compares with --against alone; drop it")
    names = asked()
    _check_features(names)
    setting = Setting(neighbours=FLAGS.pr_k, device=device, count_names=("--score", "--against"))
    features, encoder = partial(extractor, device), partial(fad_extractor, device)
    return chosen(names if FLAGS.metrics else None, names, features, encoder, setting)
