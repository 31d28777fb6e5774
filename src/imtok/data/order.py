"""The shuffled order of training pictures: a function of seed and position, without state.

Every epoch contains each picture once. Blocks of neighbouring rows are permuted, then the rows within each window of
blocks are shuffled: reading stays nearly sequential, and only one window is computed at a time, however many rows there
are.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Int

BLOCK = 32
"""Neighbouring rows that are permuted as a unit before their window is shuffled; the row group size of our shards."""
WINDOW = 32
"""Blocks whose rows are shuffled together: 1024 pictures, from at most 32 places on disk."""


def split_slot(slot: int, share: Fraction) -> tuple[int, int]:
    """Assign a slot of an endless sequence to one of two interleaved streams.

    A slot belongs to stream 1 if floor((slot + 1) * share) exceeds floor(slot * share). The slots of stream 1 are thus
    evenly spread: any n consecutive slots contain n * share of them, plus or minus one.

    Returns:
        The stream, 0 or 1, and the position in it.
    """
    before, after = int(slot * share // 1), int((slot + 1) * share // 1)
    return (1, before) if after > before else (0, slot - before)


def shuffled_index(seed: tuple[int, ...], count: int, position: int) -> tuple[int, int]:
    """Return the epoch and the row at a position of an endless sequence of shuffled passes over `count` rows."""
    epoch, offset = divmod(position, count)
    window, index = divmod(offset, WINDOW * BLOCK)
    return epoch, int(_window(seed, count, epoch, window)[index])


def stretches(length: int, count: int) -> Iterator[range]:
    """Cut the rows 0 to length - 1 into `count` consecutive ranges of nearly the same length."""
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
    return np.append(order, full) if rest else order  # the short block stays last: windows have fixed starts
