"""Inception Score from logits, gathered batch by batch."""

import torch

from ..config import require
from ..errors import UserError
from .metric import Figures, Metric, Need


class InceptionMetric(Metric):
    """The Inception Score of the extractor's logits; nothing where it gives none.

    Args:
        setting: its count makes the splits consecutive blocks, as usual.
        splits: by default ten as everywhere, fewer where there are not as many images.
    """

    needs = frozenset({Need.FEATURES, Need.LOGITS})

    def __init__(self, setting, splits=None):
        extractor = setting.features
        message = f"the Inception Score needs class logits, which {extractor.name} does not give: use the Inception"
        require(gives_logits(extractor), message)
        self._splits = splits or usual_splits(setting.count)
        self._total, self._score = setting.count, None

    def update(self, batch):
        if batch.logits is not None:
            self._score = self._score or InceptionScore(self._splits, self._total)
            self._score.update(batch.logits, batch.indices)

    def reduce(self, world):
        if world.largest(int(self._score is not None)):  # a process without images has no score of its own
            self._score = (self._score or InceptionScore(self._splits, self._total)).reduced_over(world)

    def compute(self):
        return Figures({} if self._score is None else dict(zip(("IS", "IS_std"), self._score.compute(), strict=True)))


def gives_logits(extractor):
    """Whether an extractor may; one that says nothing about it is asked."""
    return getattr(extractor, "has_logits", True)


def usual_splits(total):
    """Splits of the Inception Score of `total` images: ten as everywhere, fewer where there are not as many images."""
    return 10 if total is None else max(1, min(10, total))


class InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))), mean and spread over splits of the images.

    Salimans et al. 2016 (1606.03498), section 4. A split needs only two sums, of p(y|x) and of the entropies H(p(y|x)),
    since E KL = H(p(y)) - E H(p(y|x)). Memory does not grow with the number of images, and ranks merge by addition.

    Which split an image joins depends on its index alone. With `total` the splits are consecutive blocks, those of the
    usual code: split s holds the images from floor(s total / splits) on. Without it image i joins split i mod splits.

    Args:
        splits: number of splits S.
        total: number of images that will come, where it is known beforehand.

    Raises:
        UserError: splits below 1, or fewer images than splits.
    """

    def __init__(self, splits=10, total=None):
        if splits < 1:
            raise UserError(f"splits={splits} must be at least 1")
        if total is not None and total < splits:
            raise UserError(f"Inception Score: {total} images do not fill {splits} splits: use splits=1 or more images")
        self.splits, self.total = int(splits), total
        self.count = torch.zeros(self.splits, dtype=torch.int64)
        self.entropy = torch.zeros(self.splits, dtype=torch.float64)
        self.probability = None  # [S,K] float64, once K is known

    def update(self, logits, indices=None):
        """Adds logits [N,K].

        Args:
            logits: unnormalized log probabilities; -inf (probability 0) is allowed.
            indices: each image's index [N] within the whole run; by default the order of arrival. Ranks must pass it
                for the result not to depend on their number.

        Raises:
            UserError: wrong shape, NaN, or an index beyond `total`.
        """
        logits = torch.as_tensor(logits).detach().double()
        if logits.ndim != 2 or (self.probability is not None and logits.shape[1] != self.probability.shape[1]):
            raise UserError(f"logits have the unexpected shape {list(logits.shape)}: use one extractor throughout")
        p = torch.softmax(logits, dim=1)
        if p.isnan().any():
            raise UserError("logits hold NaN or infinity: check the images and the extractor's weights")
        if indices is None:
            first = int(self.count.sum())
            indices = torch.arange(first, first + len(logits))
        split = self._split_of(torch.as_tensor(indices, dtype=torch.int64).cpu())
        if self.probability is None:
            self.probability = torch.zeros(self.splits, logits.shape[1], dtype=torch.float64)
        self.count += torch.bincount(split, minlength=self.splits)
        self.entropy.index_add_(0, split, torch.special.entr(p).sum(dim=1).cpu())
        self.probability.index_add_(0, split, p.cpu())

    def reduced_over(self, world):
        """The score of what all processes of `world` have gathered; a new object, the same on each."""
        if world.size == 1:
            return self
        score = InceptionScore(self.splits, self.total)
        classes = world.largest(0 if self.probability is None else self.probability.shape[1])
        probability = self.probability
        if probability is None:
            probability = torch.zeros(self.splits, classes, dtype=torch.float64)
        score.count = world.sum(self.count).long()
        score.entropy = world.sum(self.entropy)
        score.probability = world.sum(probability) if classes else None
        return score

    def compute(self):
        """Returns mean and standard deviation of the splits' scores (population: divided by S, numpy's default).

        Raises:
            UserError: a split has no image, or the images are not those that `total` announced.
        """
        images = int(self.count.sum())
        if self.total is not None:
            expected = torch.bincount(self._split_of(torch.arange(self.total)), minlength=self.splits)
            if not torch.equal(self.count, expected):
                raise UserError(
                    f"Inception Score: got {images} images in splits of {self.count.tolist()}, announced were "
                    f"{self.total}: correct total, and pass indices where ranks share the images"
                )
        if self.probability is None or (self.count == 0).any():
            raise UserError(
                f"Inception Score: {images} images do not fill {self.splits} splits: use splits=1 or more images"
            )
        marginal = self.probability / self.count[:, None]
        scores = torch.exp(torch.special.entr(marginal).sum(dim=1) - self.entropy / self.count)
        return float(scores.mean()), float(scores.std(correction=0))

    def _split_of(self, indices):
        if self.total is None:
            return indices % self.splits
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.total):
            raise UserError(f"Inception Score: image {int(indices.max())} came, but total={self.total}: correct total")
        # The largest s with floor(s total / splits) <= index.
        return ((indices + 1) * self.splits - 1) // self.total
