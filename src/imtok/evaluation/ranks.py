"""Evaluation by several processes: portions of a set are dealt to them in turn, and every one learns what all found.

What is found is added up in the order of the portions, whoever has looked at them. So the numbers are those of a single
process, to the last bit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Never, TypeVar

from tqdm import tqdm

from imtok.config import InputError
from imtok.layers.collective import ObjectGroup, rank, world_size

Portion = TypeVar("Portion")
Found = TypeVar("Found")


def look_in_turn(portions: Sequence[Portion], look: Callable[[Portion], Found]) -> Iterator[Found]:
    """What is found in each portion, in their order, on every rank; a rank looks at every so-many-th of them.

    Args:
        portions: the same on every rank.
        look: what it answers travels to the other ranks, so it should be small.

    Raises:
        InputError: somebody's look ended so; the same on every rank.
    """
    group = ObjectGroup()
    for start in range(0, len(portions), world_size()):
        mine = portions[start + rank() : start + rank() + 1]
        for found in group.gather([_attempt(look, portion) for portion in mine]):
            for one in found:
                if isinstance(one, InputError):
                    raise one
                yield one


def say(line: str) -> None:
    """A line for the user beside the progress bar, once for all ranks."""
    if rank() == 0:
        tqdm.write(line)


def progress_bar(total: int, what: str, unit: str) -> "tqdm[Never]":
    """On a terminal, and once for all ranks."""
    return tqdm(total=total, desc=what, unit=unit, disable=None if rank() == 0 else True)


def _attempt(look: Callable[[Portion], Found], portion: Portion) -> Found | InputError:
    """An error as an answer, so that the other ranks need not wait for one who has gone."""
    try:
        return look(portion)
    except InputError as error:
        return error
