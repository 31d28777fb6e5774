"""Evaluation on several processes: portions of a set are distributed round-robin, and every rank gets all findings.

Findings are accumulated in the order of the portions, regardless of the rank that computed them. The scores are
therefore bit-identical to those of a single process.
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
    """The processes of one evaluation; without torchrun, a single process."""

    def __init__(self) -> None:
        self._group = ObjectGroup()

    def map_in_order(self, portions: Sequence[Portion], function: Callable[[Portion], Found]) -> Iterator[Found]:
        """Yield the result of `function` for each portion, in order, on all ranks; each of n ranks computes every n-th.

        Args:
            portions: the portions; the same on every rank.
            function: function of a portion; its result is sent to the other ranks, so it should be small.

        Raises:
            InputError: raised by `function` on some rank; the same on every rank.
            OSError: raised by `function` on some rank; the same on every rank.
        """
        for start in range(0, len(portions), world_size()):
            own = portions[start + rank() : start + rank() + 1]
            for found in self.exchange([catch_errors(function, portion) for portion in own]):
                yield from map(unwrap, found)

    def agree(self, function: Callable[[Portion], Found], portion: Portion) -> Found | InputError | OSError:
        """Return this rank's result, or on all ranks the first failing rank's error, so that all act alike."""
        own = catch_errors(function, portion)
        errors = self.exchange([own if isinstance(own, USER_ERRORS) else None])
        return next((error for (error,) in errors if error is not None), own)

    def exchange(self, own: Any) -> list[Any]:
        """Return the objects of all ranks in rank order; an error object means that its rank has ended the evaluation.

        Raises:
            Ended: some rank has ended the evaluation.
        """
        everyones = self._group.gather(own)
        if ended := [one for one in everyones if isinstance(one, USER_ERRORS)]:
            raise Ended(ended[0])
        return everyones


class Ended(Exception):
    """The evaluation has ended on all ranks because of an error on one of them."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def together() -> Iterator[Ranks]:
    """Join the processes started by torchrun, if any, and leave them together.

    No rank leaves before all are done. An error on one rank ends all of them: rank 0 raises it, so that it is reported
    once, and the others exit.
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
    """Print a line for the user without disturbing the progress bar, on rank 0 only."""
    if rank() == 0:
        tqdm.write(as_unicode(line))


def progress_bar(total: int, what: str) -> "tqdm[Never]":
    """Create a progress bar over pictures, shown on a terminal and on rank 0 only."""
    return tqdm(total=total, desc=what, unit=" pictures", disable=None if rank() == 0 else True)


def catch_errors(function: Callable[[Portion], Found], portion: Portion) -> Found | InputError | OSError:
    """Return what `function` returns, or a user error as a value, so that all ranks can handle it at the same point.

    Running out of memory counts as a user error and becomes a ConfigError.
    """
    try:
        return function(portion)
    except USER_ERRORS as error:
        return error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return ConfigError(f"out of memory ({first_line(error)}); --size makes large pictures smaller")


def unwrap(found: Any) -> Any:
    """Return a result of `catch_errors`, or raise the error that it holds.

    Raises:
        InputError: the result is such an error.
        OSError: the result is such an error.
    """
    if isinstance(found, USER_ERRORS):
        raise found
    return found
