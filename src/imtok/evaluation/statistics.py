"""Means over pictures, words and faces with their bootstrap intervals, alone and against each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_ITEMS = 20
"""A size bucket with fewer words or faces has no value and no share in the mean, unless all are that small."""
MIN_GROUPS = 10
"""With fewer groups a bootstrap says nothing, and no interval is given."""
_CHUNK = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """One number for every picture, word or face.

    Attributes:
        values: the numbers.
        groups: which group each belongs to, from 0: what a bootstrap draws together (a picture and its close-ups).
        buckets: which size bucket each belongs to, from 0.
        bucket_names: in order; one without a name for what knows no sizes.
        min_items: what a bucket must hold to have a share in the mean, unless none does.
    """

    values: Float[np.ndarray, " items"]
    groups: Int[np.ndarray, " items"]
    buckets: Int[np.ndarray, " items"]
    bucket_names: tuple[str, ...] = ("",)
    min_items: int = MIN_ITEMS

    def __len__(self) -> int:
        return len(self.values)

    def bucket_sizes(self) -> Int[np.ndarray, " buckets"]:
        """How many items each bucket holds."""
        return np.bincount(self.buckets, minlength=len(self.bucket_names))

    def counted(self) -> Bool[np.ndarray, " buckets"]:
        """Which buckets have a share in the mean; where none is large enough, all that hold anything."""
        sizes = self.bucket_sizes()
        large = sizes >= self.min_items
        return large if large.any() else sizes > 0

    def bucket_means(self) -> list[float | None]:
        """The mean of each bucket, or None where it has too few items."""
        counted = enumerate(self.counted())
        return [float(self.values[self.buckets == index].mean()) if counts else None for index, counts in counted]

    def number_of_items(self) -> int:
        """Items that have a share in the mean."""
        return int(self.bucket_sizes()[self.counted()].sum())

    def number_of_groups(self) -> int:
        """Groups that have a share in the mean."""
        return len(np.unique(self.groups[np.isin(self.buckets, np.flatnonzero(self.counted()))]))

    def where(self, chosen: Bool[np.ndarray, " items"]) -> "Items":
        """Some of the items."""
        return replace(self, values=self.values[chosen], groups=self.groups[chosen], buckets=self.buckets[chosen])

    def mean(self) -> float | None:
        """The mean of the bucket means (TokBench's rule); None without items."""
        means = [mean for mean in self.bucket_means() if mean is not None]
        return float(np.mean(means)) if means else None


@dataclass(frozen=True)
class Interval:
    """A value and the interval that a bootstrap gives it, at `CONFIDENCE`; NaN limits where it can give none."""

    value: float
    low: float
    high: float


def interval(items: Items, seed: int = 0) -> Interval:
    """The mean with a percentile bootstrap over groups.

    Args:
        items: at least one, all finite.
        seed: of the resamples.

    Raises:
        ValueError: no items.
    """
    value = items.mean()
    if value is None:
        raise ValueError("nothing to average")
    if items.number_of_groups() < MIN_GROUPS:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_limits(_resampled_means([items], seed)[0]))


def paired_difference(items: Items, baseline: Items, seed: int = 0) -> Interval:
    """How much larger one mean is than another of the same items, with a paired bootstrap over groups.

    Both are resampled together, so what makes a picture hard for both cancels out. A difference counts when its
    interval excludes 0.

    Raises:
        ValueError: the two are not numbers of the same items, or there are none.
    """
    same = np.array_equal(items.groups, baseline.groups) and np.array_equal(items.buckets, baseline.buckets)
    value, base = items.mean(), baseline.mean()
    if not same or value is None or base is None:
        raise ValueError("only numbers of the same pictures, words or faces can be compared")
    if items.number_of_groups() < MIN_GROUPS:
        return Interval(value - base, np.nan, np.nan)
    ours, theirs = _resampled_means([items, baseline], seed)
    return Interval(value - base, *_limits(ours - theirs))


def _resampled_means(several: Sequence[Items], seed: int) -> list[Float[np.ndarray, " resamples"]]:
    """The mean of each of several numbers of the same items, in the same resamples of their groups."""
    first = several[0]
    buckets = np.flatnonzero(first.counted())
    kept = np.isin(first.buckets, buckets)
    _, groups = np.unique(first.groups[kept], return_inverse=True)  # those that have a share in the mean
    shape = (int(groups.max()) + 1, len(first.bucket_names))
    cells = groups * shape[1] + first.buckets[kept]

    def per_group(weights: np.ndarray | None) -> Float[np.ndarray, "groups buckets"]:
        return np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)[:, buckets].astype(np.float64)

    counts, sums = per_group(None), [per_group(items.values[kept]) for items in several]
    rng = np.random.default_rng(seed)
    means: list[list[np.ndarray]] = [[] for _ in several]
    for _ in range(RESAMPLES // _CHUNK):
        drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), _CHUNK).astype(np.float64)
        for found, sum_of in zip(means, sums, strict=True):
            with np.errstate(invalid="ignore"):  # a bucket of which a resample holds nothing leaves its mean
                found.append(np.nanmean(drawn @ sum_of / (drawn @ counts), axis=1))
    return [np.concatenate(found) for found in means]


def _limits(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
