import numpy as np
import pytest

from imtok.evaluation.meters import Measurement
from imtok.evaluation.results import Comparison, score_of
from imtok.evaluation.statistics import MIN_GROUPS, MIN_ITEMS, Items, interval, paired_difference


def items(
    values: np.ndarray, groups: np.ndarray | None = None, buckets: np.ndarray | None = None, names: int = 1
) -> Items:
    return Items(
        values=np.asarray(values, dtype=np.float64),
        groups=np.arange(len(values)) if groups is None else groups,
        buckets=np.zeros(len(values), dtype=np.int64) if buckets is None else buckets,
        bucket_names=tuple(f"bucket {index}" for index in range(names)),
    )


def test_interval_agrees_with_the_normal_one_for_independent_items() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = interval(items(values))
    error = values.std() / 400**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_close_ups_of_one_picture_are_resampled_together() -> None:
    """Ten equal copies of each number carry no more information than one."""
    values = np.random.default_rng(1).normal(0, 1, 40)
    alone, copied = interval(items(values)), interval(items(values.repeat(10), groups=np.arange(40).repeat(10)))
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_intervals_have_nominal_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of two sizes, in pictures that are hard or easy as a whole, from two tokenizers on the same pictures.

    Small words are read with a probability of .3, the fewer large ones of .6, and .1 more for the second tokenizer.
    Intervals that ignored pictures or sizes would miss the true value, those that ignored pairs would be much too wide.
    """
    monkeypatch.setattr("imtok.evaluation.statistics.RESAMPLES", 400)  # sufficient here
    rng = np.random.default_rng(2)
    trials, pictures = 120, 60
    covered = dict.fromkeys(("mean", "difference", "without pictures", "without sizes"), 0)
    widths = []
    for _ in range(trials):
        groups = np.repeat(np.arange(pictures), rng.integers(3, 10, pictures))
        buckets = rng.binomial(1, 0.2, len(groups))
        probability = 0.3 + 0.3 * buckets + rng.choice([-0.3, 0.3], pictures)[groups]
        uniform = rng.random(len(groups))  # shared by the tokenizers too
        first, second = (items(uniform < probability + gain, groups, buckets, names=2) for gain in (0, 0.1))
        alone, mixed = items(first.values, buckets=buckets, names=2), items(first.values, groups)
        found, difference = interval(first), paired_difference(second, first)
        for name, one, truth in (
            ("mean", found, 0.45),
            ("difference", difference, 0.1),
            ("without pictures", interval(alone), 0.45),
            ("without sizes", interval(mixed), 0.45),
        ):
            covered[name] += one.low <= truth <= one.high
        widths.append((difference.high - difference.low) / (found.high - found.low))
    assert 0.9 * trials <= min(covered["mean"], covered["difference"]), covered
    assert max(covered["mean"], covered["difference"]) <= 0.99 * trials, covered
    assert covered["without pictures"] < 0.85 * trials, covered
    assert covered["without sizes"] < 0.5 * trials, covered
    assert np.mean(widths) < 0.5


def test_buckets_have_equal_weight_and_small_ones_are_ignored() -> None:
    large, small = MIN_ITEMS * 5, MIN_ITEMS
    values = np.r_[np.zeros(large), np.ones(small), np.full(MIN_ITEMS - 1, 50.0)]
    buckets = np.r_[np.zeros(large), np.ones(small), np.full(MIN_ITEMS - 1, 2)].astype(np.int64)
    found = items(values, buckets=buckets, names=3)
    assert found.bucket_means() == [0, 1, None]
    assert found.mean() == 0.5
    assert found.number_of_items() == large + small
    assert interval(found).low == interval(found).high == 0.5


def test_a_set_with_small_buckets_only_still_has_a_mean() -> None:
    assert items(np.array([1.0, 3.0]), buckets=np.array([0, 1]), names=3).mean() == 2
    assert items(np.array([])).mean() is None
    with pytest.raises(ValueError, match="nothing to average"):
        interval(items(np.array([])))


def test_interval_is_unchanged_by_empty_and_ignored_groups() -> None:
    values = np.random.default_rng(4).normal(0, 1, 30)
    apart = items(values, groups=np.arange(30) * 7 + 3)
    assert interval(apart) == interval(items(values))
    few = np.r_[values, np.full(5, 100.0)]
    buckets = np.r_[np.zeros(30), np.ones(5)].astype(np.int64)
    of_few, of_all = interval(items(few, buckets=buckets, names=2)), interval(items(values))
    # Another grouping may change the order of summation, which on some processors changes the last bit.
    assert (of_few.value, of_few.low, of_few.high) == pytest.approx((of_all.value, of_all.low, of_all.high), rel=1e-12)


def test_pairing_removes_shared_variation() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 10, 300)
    ours, theirs = items(shared + 0.5 + rng.normal(0, 0.1, 300)), items(shared)
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(0.5, abs=0.03)
    assert 0.45 < found.low < found.high < 0.55
    apart = interval(ours)
    assert apart.high - apart.low > 20 * (found.high - found.low)


def test_paired_difference_rejects_different_items_and_no_items() -> None:
    with pytest.raises(ValueError, match="same pictures"):
        paired_difference(items(np.zeros(3)), items(np.zeros(3), groups=np.array([0, 0, 1])))
    with pytest.raises(ValueError, match="same pictures"):
        paired_difference(items(np.zeros(0)), items(np.zeros(0)))


def test_few_groups_give_no_interval() -> None:
    """Forty words of one picture say nothing about other pictures."""
    one = items(np.arange(40.0), groups=np.zeros(40, dtype=np.int64))
    assert interval(one).value == 19.5
    assert np.isnan(interval(one).low)
    assert np.isnan(paired_difference(one, one).high)
    assert np.isfinite(interval(items(np.arange(40.0), groups=np.arange(40) % MIN_GROUPS)).low)


def test_non_finite_values_are_excluded_from_every_mean() -> None:
    values = np.repeat([1.0, np.nan, 3.0, 5.0, np.inf], MIN_ITEMS)
    faces = items(values, buckets=np.repeat([0, 0, 0, 1, 1], MIN_ITEMS), names=2)
    score = score_of(Measurement(items=faces, note="rule"), frozenset())
    expected = {"value": 2.0, "count": 2 * MIN_ITEMS}, {"value": 5.0, "count": MIN_ITEMS}
    assert score.buckets == {"bucket 0": expected[0], "bucket 1": expected[1]}
    assert (score.value, score.count) == (3.5, 3 * MIN_ITEMS)
    assert score.note == f"rule; {2 * MIN_ITEMS} that are not finite are left out"


def test_lower_is_better_for_metrics_labelled_so() -> None:
    def decrease(metric: str) -> Comparison:
        fields = {"tokenizer": "b", "baseline": "a", "data": "x", "count": 9}
        return Comparison(metric=metric, difference=-0.1, low=-0.2, high=-0.05, **fields)

    assert [decrease(metric).better for metric in ("lpips", "vgg16_distance", "psnr", "face_similarity")] == [
        True,
        True,
        False,
        False,
    ]
