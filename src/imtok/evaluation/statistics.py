"""Means over pictures, words and faces, and their paired differences, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_ITEMS = 20
"""A size bucket with fewer words or faces has no value and does not count in the mean, unless all are that small."""
MIN_GROUPS = 10
"""With fewer groups a bootstrap is meaningless, and no interval is given."""
_CHUNK = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """One number per picture, word or face.

    Attributes:
        values: the numbers.
        groups: index of each item's group, from 0; the bootstrap resamples whole groups (a picture and its close-ups).
        buckets: index of each item's size bucket, from 0.
        bucket_names: names of the buckets in order; a single empty name for items without size buckets.
        min_items: number of items that a bucket needs to count in the mean, unless no bucket has as many.
    """

    values: Float[np.ndarray, " items"]
    groups: Int[np.ndarray, " items"]
    buckets: Int[np.ndarray, " items"]
    bucket_names: tuple[str, ...] = ("",)
    min_items: int = MIN_ITEMS

    def __len__(self) -> int:
        return len(self.values)

    def bucket_sizes(self) -> Int[np.ndarray, " buckets"]:
        """Return the number of items in each bucket."""
        return np.bincount(self.buckets, minlength=len(self.bucket_names))

    def counted(self) -> Bool[np.ndarray, " buckets"]:
        """Return which buckets count in the mean: those of at least `min_items`, or if none is, all non-empty ones."""
        sizes = self.bucket_sizes()
        large = sizes >= self.min_items
        return large if large.any() else sizes > 0

    def bucket_means(self) -> list[float | None]:
        """Return the mean of each bucket; None for a bucket that does not count in the mean."""
        counted = enumerate(self.counted())
        return [float(self.values[self.buckets == index].mean()) if counts else None for index, counts in counted]

    def number_of_items(self) -> int:
        """Return the number of items that count in the mean."""
        return int(self.bucket_sizes()[self.counted()].sum())

    def number_of_groups(self) -> int:
        """Return the number of groups that count in the mean."""
        return len(np.unique(self.groups[np.isin(self.buckets, np.flatnonzero(self.counted()))]))

    def where(self, chosen: Bool[np.ndarray, " items"]) -> "Items":
        """Return the selected items."""
        return replace(self, values=self.values[chosen], groups=self.groups[chosen], buckets=self.buckets[chosen])

    def mean(self) -> float | None:
        """Return the mean of the bucket means (TokBench's rule); None without items."""
        means = [mean for mean in self.bucket_means() if mean is not None]
        return float(np.mean(means)) if means else None


@dataclass(frozen=True)
class Interval:
    """A value and its bootstrap interval at level `CONFIDENCE`; the limits are NaN if there are too few groups."""

    value: float
    low: float
    high: float


def interval(items: Items, seed: int = 0) -> Interval:
    """Return the mean and its interval by a percentile bootstrap over groups.

    Args:
        items: at least one item; all values must be finite.
        seed: random seed of the resamples.

    Raises:
        ValueError: there are no items.
    """
    value = items.mean()
    if value is None:
        raise ValueError("nothing to average")
    if items.number_of_groups() < MIN_GROUPS:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_limits(_resampled_means([items], seed)[0]))


def paired_difference(items: Items, baseline: Items, seed: int = 0) -> Interval:
    """Return the difference of two means over the same items, with its interval by a paired bootstrap over groups.

    Both are resampled together, so that difficulty shared by both cancels out. A difference is significant if its
    interval excludes 0.

    Args:
        items: values of the first mean.
        baseline: values of the mean that is subtracted, for the same items.
        seed: random seed of the resamples.

    Raises:
        ValueError: the groups or buckets of the two differ, or there are no items.
    """
    same = np.array_equal(items.groups, baseline.groups) and np.array_equal(items.buckets, baseline.buckets)
    value, base = items.mean(), baseline.mean()
    if not same or value is None or base is None:
        raise ValueError("only numbers of the same pictures, words or faces can be compared")
    if items.number_of_groups() < MIN_GROUPS:
        return Interval(value - base, np.nan, np.nan)
    item_means, baseline_means = _resampled_means([items, baseline], seed)
    return Interval(value - base, *_limits(item_means - baseline_means))


def _resampled_means(metrics: Sequence[Items], seed: int) -> list[Float[np.ndarray, " resamples"]]:
    """Return the resampled means of several metrics of the same items, all with the same resamples of the groups."""
    first = metrics[0]
    buckets = np.flatnonzero(first.counted())
    kept = np.isin(first.buckets, buckets)
    _, groups = np.unique(first.groups[kept], return_inverse=True)  # only groups that count in the mean
    shape = (int(groups.max()) + 1, len(first.bucket_names))
    cells = groups * shape[1] + first.buckets[kept]

    def per_group(weights: np.ndarray | None) -> Float[np.ndarray, "groups buckets"]:
        return np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)[:, buckets].astype(np.float64)

    counts, sums = per_group(None), [per_group(items.values[kept]) for items in metrics]
    rng = np.random.default_rng(seed)
    means: list[list[np.ndarray]] = [[] for _ in metrics]
    for _ in range(RESAMPLES // _CHUNK):
        multiplicities = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), _CHUNK).astype(np.float64)
        for found, sum_of in zip(means, sums, strict=True):
            with np.errstate(invalid="ignore"):  # a bucket that is empty in a resample is left out of its mean
                found.append(np.nanmean(multiplicities @ sum_of / (multiplicities @ counts), axis=1))
    return [np.concatenate(found) for found in means]


def _limits(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
