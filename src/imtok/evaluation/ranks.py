"""Evaluation by several processes: portions of a set are dealt to them in turn, and every one learns what all found.

What is found is added up in the order of the portions, whoever has looked at them. So the numbers are those of a single
process, to the last bit.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Never, TypeVar

from tqdm import tqdm

from imtok.config import ConfigError, InputError, first_line, is_out_of_memory
from imtok.data.rows import as_unicode
from imtok.layers.collective import ObjectGroup, process_group, rank, world_size

Portion = TypeVar("Portion")
Found = TypeVar("Found")

USER_ERRORS = (InputError, OSError)


class Ranks:
    """The processes of one evaluation; alone, one process."""

    def __init__(self) -> None:
        self._group = ObjectGroup()

    def map_in_order(self, portions: Sequence[Portion], look: Callable[[Portion], Found]) -> Iterator[Found]:
        """What is found in each portion, in their order, on every rank; a rank looks at every so-many-th of them.

        Args:
            portions: the same on every rank.
            look: what it answers travels to the other ranks, so it should be small.

        Raises:
            InputError: somebody's look ended so; the same on every rank.
            OSError: likewise.
        """
        for start in range(0, len(portions), world_size()):
            mine = portions[start + rank() : start + rank() + 1]
            for found in self.exchange([catch_errors(look, portion) for portion in mine]):
                yield from map(unwrap, found)

    def agree(self, look: Callable[[Portion], Found], portion: Portion) -> Found | InputError | OSError:
        """What this rank finds; or the error of the first that met one, so that all go on without it alike."""
        mine = catch_errors(look, portion)
        met = self.exchange([mine if isinstance(mine, USER_ERRORS) else None])
        return next((error for (error,) in met if error is not None), mine)

    def exchange(self, mine: Any) -> list[Any]:
        """Every rank's, in their order; an error instead says that the rank has ended.

        Raises:
            Ended: somebody has.
        """
        everyones = self._group.gather(mine)
        if ended := [one for one in everyones if isinstance(one, USER_ERRORS)]:
            raise Ended(ended[0])
        return everyones


class Ended(Exception):
    """All ranks know that the evaluation has ended, and by which error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def together() -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did, and end with them.

    Nobody leaves before all are done. The error of one ends all: the first rank raises it, so that it is said once, and
    the others exit.
    """
    with process_group():
        ranks = Ranks()
        if world_size() == 1:
            yield ranks
            return
        try:
            error = None
            try:
                yield ranks
            except USER_ERRORS as own:
                error = own
            ranks.exchange(error)
        except Ended as ended:
            if rank() == 0:
                raise ended.error from None
            sys.exit(2)


def say(line: str) -> None:
    """A line for the user beside the progress bar, once for all ranks."""
    if rank() == 0:
        tqdm.write(as_unicode(line))


def progress_bar(total: int, what: str) -> "tqdm[Never]":
    """Of pictures, on a terminal, and once for all ranks."""
    return tqdm(total=total, desc=what, unit=" pictures", disable=None if rank() == 0 else True)


def catch_errors(look: Callable[[Portion], Found], portion: Portion) -> Found | InputError | OSError:
    """What is found, or an error as an answer, so that all ranks meet it at the same place."""
    try:
        return look(portion)
    except USER_ERRORS as error:
        return error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return ConfigError(f"out of memory ({first_line(error)}); --size makes large pictures smaller")


def unwrap(found: Any) -> Any:
    """What `catch_errors` found.

    Raises:
        InputError: it has met one.
        OSError: likewise.
    """
    if isinstance(found, USER_ERRORS):
        raise found
    return found
