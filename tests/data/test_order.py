"""The order of training: every row once an epoch, nearly sequential, and two streams evenly mixed."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from imtok.data.order import BLOCK, WINDOW, shuffled_index, split_slot


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 1024, 2500])
def test_each_epoch_has_every_row_once(count):
    order = [shuffled_index((7, 0), count, position) for position in range(3 * count)]
    assert [epoch for epoch, _ in order] == [0] * count + [1] * count + [2] * count
    rows = np.array([row for _, row in order]).reshape(3, count)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(count), (3, 1)))
    if count > 30:
        assert (rows[0] != rows[1]).mean() > 0.9
        assert (np.diff(rows[0]) == 1).mean() < 0.1
    if count > WINDOW * BLOCK:  # windows hold other blocks in another epoch
        first, second = (set(epoch[: WINDOW * BLOCK].tolist()) for epoch in rows[:2])
        assert first != second


def test_order_depends_on_the_seed():
    first, second = ([shuffled_index((seed, 0), 500, position) for position in range(500)] for seed in (0, 1))
    assert first != second


def test_distant_window_is_made_of_few_whole_blocks_from_everywhere():
    count = 100_000_000
    start = 5 * count + 123 * WINDOW * BLOCK  # a window far inside the sixth epoch, cheap to compute
    order = [shuffled_index((0, 0), count, start + i) for i in range(WINDOW * BLOCK)]
    assert {epoch for epoch, _ in order} == {5}
    assert set(Counter(row // BLOCK for _, row in order).values()) == {BLOCK}  # whole blocks
    assert len({row // BLOCK // 1000 for _, row in order}) > WINDOW / 2  # from all over


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(4, 5), Fraction(1)])
def test_streams_are_evenly_interleaved_without_gaps(share):
    slots = [split_slot(slot, share) for slot in range(600)]
    for stream in (0, 1):
        positions = [position for which, position in slots if which == stream]
        assert positions == list(range(len(positions)))
    streams = [which for which, _ in slots]
    for start in range(0, 590, 7):
        assert abs(sum(streams[start : start + 10]) - 10 * share) < 1.001
