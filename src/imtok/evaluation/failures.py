"""Failures of an evaluation: what was requested but had to be left out, and why; everything else is measured."""

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
        why: reason in one line.
        tokenizer: name of the tokenizer; None if the failure is not about one.
        data: name of the set; None if the failure is not about one.
        metric: name of the metric, or description of the metrics that fail together; None if it is about none.
    """

    why: str
    tokenizer: str | None = None
    data: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        what = [name for name in (self.tokenizer, self.data, self.metric) if name is not None]
        return f"without {' on '.join(what)}: {self.why}"


class Failures:
    """All failures of an evaluation; each is reported to the user as soon as it is added.

    Args:
        metrics: names of all metrics to measure, for `lose` and `left`.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self._metrics = metrics
        self.met: list[Failure] = []

    def add(self, error: Exception | str, **what: str) -> None:
        """Add a failed tokenizer or set, or a tokenizer or metric that failed on one set."""
        self._add(_failure(error, **what))

    def lose(self, metrics: Sequence[str], error: Exception) -> None:
        """Add failed metrics; those that had failed before keep their first error."""
        if lost := [metric for metric in metrics if metric in self.left()]:
            self.met += [_failure(error, metric=metric) for metric in lost]
            say(f"without {', '.join(lost)}: {error}")

    def left(self) -> list[str]:
        """Return the metrics that have not failed so far."""
        lost = {failure.metric for failure in self.met}
        return [metric for metric in self._metrics if metric not in lost]

    def survivors(
        self, kind: str, attempts: Sequence[tuple[str, Found | InputError | OSError]]
    ) -> list[tuple[str, Found]]:
        """Return the successful ones of some attempts, and add the others as failures.

        Args:
            kind: keyword of `add` that the names belong to: tokenizer, data or metric.
            attempts: pairs of a name and the result or error of the attempt.

        Raises:
            InputError: all attempts failed; the first one's error.
            OSError: all attempts failed; the first one's error.
        """
        errors = [(name, result) for name, result in attempts if isinstance(result, InputError | OSError)]
        nothing_left = bool(errors) and len(errors) == len(attempts)
        for name, error in errors[nothing_left:]:
            self._add(_failure(error, **{kind: name}))
        if nothing_left:
            raise errors[0][1]
        return [(name, result) for name, result in attempts if not isinstance(result, InputError | OSError)]

    def _add(self, failure: Failure) -> None:
        self.met.append(failure)
        say(str(failure))


def _failure(error: Exception | str, **what: str) -> Failure:
    """Create a failure; file names may be invalid Unicode, but what is written to reports must be valid."""
    return Failure(why=as_unicode(error), **{kind: as_unicode(name) for kind, name in what.items()})
