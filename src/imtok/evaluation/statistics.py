"""Means over pictures, words and faces with their bootstrap intervals, alone and against each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_ITEMS = 20
"""A size bucket with fewer words or faces is null and leaves the mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """One number for every picture, word or face.

    Attributes:
        values: the numbers.
        groups: which group each belongs to, from 0: what a bootstrap draws together (a picture and its close-ups).
        buckets: which size bucket each belongs to, from 0.
        bucket_names: in order; one without a name for what knows no sizes.
    """

    values: Float[np.ndarray, " items"]
    groups: Int[np.ndarray, " items"]
    buckets: Int[np.ndarray, " items"]
    bucket_names: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        return len(self.values)

    def bucket_sizes(self) -> Int[np.ndarray, " buckets"]:
        """How many items each bucket holds."""
        return np.bincount(self.buckets, minlength=len(self.bucket_names))

    def counted(self) -> Bool[np.ndarray, " buckets"]:
        """Which buckets have a share in the mean; where none is large enough, all that hold anything."""
        sizes = self.bucket_sizes()
        return sizes >= MIN_ITEMS if (sizes >= MIN_ITEMS).any() else sizes > 0

    def bucket_means(self) -> list[float | None]:
        """The mean of each bucket, or None where it has too few items."""
        means = [self.values[self.buckets == index].mean() for index in np.flatnonzero(self.bucket_sizes())]
        found = dict(zip(np.flatnonzero(self.bucket_sizes()).tolist(), means, strict=True))
        return [float(found[index]) if counts else None for index, counts in enumerate(self.counted())]

    def mean(self) -> float | None:
        """The mean of the bucket means (TokBench's rule); None without items."""
        means = [mean for mean in self.bucket_means() if mean is not None]
        return float(np.mean(means)) if means else None


@dataclass(frozen=True)
class Interval:
    """A value and the interval that a bootstrap gives it, at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def interval(items: Items, seed: int = 0) -> Interval:
    """The mean with a percentile bootstrap over groups; without limits (NaN) where a value is infinite.

    Args:
        items: at least one.
        seed: of the resamples.

    Raises:
        ValueError: no items.
    """
    value = items.mean()
    if value is None:
        raise ValueError("nothing to average")
    if not np.isfinite(items.values).all():  # the PSNR of equal pictures
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_limits(_resampled_means([items], seed)[0]))


def paired_difference(items: Items, baseline: Items, seed: int = 0) -> Interval:
    """How much larger one mean is than another of the same items, with a paired bootstrap over groups.

    Both are resampled together, so what makes a picture hard for both cancels out. A difference counts when its
    interval excludes 0.

    Raises:
        ValueError: the two are not finite numbers of the same items.
    """
    same = np.array_equal(items.groups, baseline.groups) and np.array_equal(items.buckets, baseline.buckets)
    if not same or not len(items) or not np.isfinite([items.values, baseline.values]).all():
        raise ValueError("only finite numbers of the same pictures, words or faces can be compared")
    ours, theirs = _resampled_means([items, baseline], seed)
    value, base = items.mean(), baseline.mean()
    assert value is not None
    assert base is not None
    return Interval(value - base, *_limits(ours - theirs))


def _resampled_means(several: Sequence[Items], seed: int) -> list[Float[np.ndarray, " resamples"]]:
    """The mean of each of several numbers of the same items, in the same resamples of their groups."""
    first = several[0]
    buckets = np.flatnonzero(first.counted())
    kept = np.isin(first.buckets, buckets)
    _, groups = np.unique(first.groups[kept], return_inverse=True)  # those that have a share in the mean
    shape = (int(groups.max()) + 1, len(first.bucket_names))
    cells = groups * shape[1] + first.buckets[kept]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), RESAMPLES).astype(np.float64)

    def per_resample(weights: Float[np.ndarray, " kept"] | None) -> Float[np.ndarray, "resamples buckets"]:
        table = np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)
        return (drawn @ table)[:, buckets]

    sizes = per_resample(None)
    with np.errstate(invalid="ignore"):  # a bucket of which a resample holds nothing leaves that resample's mean
        return [np.nanmean(per_resample(items.values[kept]) / sizes, axis=1) for items in several]


def _limits(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
