"""The order in which training shows pictures: a function of seed and position, with nothing to remember.

Every epoch shows each picture once. Blocks of neighbours are permuted, and a window of blocks is shuffled: reading
stays nearly sequential, and only one window is computed at a time, however many rows there are.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Int

BLOCK = 32
"""Neighbours that stay together until their window is shuffled; a row group of our shards."""
WINDOW = 32
"""Blocks that are shuffled together: 1024 pictures, from at most so many places on disk."""


def split_slot(slot: int, share: Fraction) -> tuple[int, int]:
    """Which of two streams an endless row of slots shows at a place, and how far that stream has come.

    A line of slope `share`, rounded down, steps up wherever the second stream is shown: evenly spread, and every
    stretch of n slots holds n * share of them, give or take one.

    Returns:
        The stream, 0 or 1, and the position in it.
    """
    before, after = int(slot * share // 1), int((slot + 1) * share // 1)
    return (1, before) if after > before else (0, slot - before)


def shuffled_index(seed: tuple[int, ...], count: int, position: int) -> tuple[int, int]:
    """The epoch in which an endless shuffled pass over `count` rows is at a position, and the row shown there."""
    epoch, offset = divmod(position, count)
    window, place = divmod(offset, WINDOW * BLOCK)
    return epoch, int(_window(seed, count, epoch, window)[place])


def stretches(length: int, count: int) -> Iterator[range]:
    """Rows cut into `count` stretches of nearly the same length, in order."""
    starts = [index * length // count for index in range(count)]
    return itertools.starmap(range, itertools.pairwise([*starts, length]))


@lru_cache(maxsize=8)
def _window(seed: tuple[int, ...], count: int, epoch: int, window: int) -> Int[np.ndarray, " window"]:
    blocks = _blocks(seed, count, epoch)[window * WINDOW : (window + 1) * WINDOW]
    rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return np.random.default_rng((*seed, epoch, 1 + window)).permutation(rows[rows < count])


@lru_cache(maxsize=4)
def _blocks(seed: tuple[int, ...], count: int, epoch: int) -> Int[np.ndarray, " blocks"]:
    full, rest = divmod(count, BLOCK)
    order = np.random.default_rng((*seed, epoch, 0)).permutation(full)
    return np.append(order, full) if rest else order  # the short block stays last: windows start at fixed places
