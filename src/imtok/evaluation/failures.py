"""What an evaluation was asked for and had to leave out, and why; the rest is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from imtok.config import InputError
from imtok.data.rows import as_unicode
from imtok.evaluation.ranks import say

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A tokenizer, a set, a metric (whose network is missing), or a tokenizer or metric on one set.

    Attributes:
        why: in a line.
        tokenizer: as it was named.
        data: likewise.
        metric: likewise.
    """

    why: str
    tokenizer: str | None = None
    data: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        what = [name for name in (self.tokenizer, self.data, self.metric) if name is not None]
        return f"without {' on '.join(what)}: {self.why}"


class Failures:
    """All of an evaluation, each said when it comes.

    Args:
        metrics: all that shall be measured, for an evaluation that may lose them one by one.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self._metrics = metrics
        self.met: list[Failure] = []

    def add(self, error: Exception | str, **what: str) -> None:
        """A tokenizer or a set, or a tokenizer or a metric on one set, has met an error."""
        self._add(_failure(error, **what))

    def lose(self, metrics: Sequence[str], error: Exception) -> None:
        """Some metrics have met an error; those that were lost before keep their first one."""
        if lost := [metric for metric in metrics if metric in self.left()]:
            self.met += [_failure(error, metric=metric) for metric in lost]
            say(f"without {', '.join(lost)}: {error}")

    def left(self) -> list[str]:
        """The metrics that can still be measured, as far as is known."""
        lost = {failure.metric for failure in self.met}
        return [metric for metric in self._metrics if metric not in lost]

    def survivors(
        self, kind: str, attempts: Sequence[tuple[str, Found | InputError | OSError]]
    ) -> list[tuple[str, Found]]:
        """Those of some attempts that went well; the others are noted.

        Args:
            kind: of what: tokenizer, data or metric.
            attempts: names, and what came out or an error.

        Raises:
            InputError: none went well; the first one's.
            OSError: likewise.
        """
        errors = [(name, one) for name, one in attempts if isinstance(one, InputError | OSError)]
        nothing_left = bool(errors) and len(errors) == len(attempts)
        for name, error in errors[nothing_left:]:
            self._add(_failure(error, **{kind: name}))
        if nothing_left:
            raise errors[0][1]
        return [(name, one) for name, one in attempts if not isinstance(one, InputError | OSError)]

    def _add(self, failure: Failure) -> None:
        self.met.append(failure)
        say(str(failure))


def _failure(error: Exception | str, **what: str) -> Failure:
    """Names of files need not be Unicode; what is written to reports has to."""
    return Failure(why=as_unicode(error), **{kind: as_unicode(name) for kind, name in what.items()})
