"""What an evaluation was asked for and had to leave out, and why; the rest is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from imtok.config import InputError
from imtok.evaluation.ranks import say

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A tokenizer, a set, or a tokenizer on one set; or a metric, whose network is missing.

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
    """All of an evaluation, each said when it comes."""

    def __init__(self) -> None:
        self.met: list[Failure] = []

    def add(self, error: Exception, *, tokenizer: str | None = None, data: str | None = None) -> None:
        """A tokenizer or a set, or a tokenizer on one set, has met an error."""
        self._add(Failure(why=str(error), tokenizer=tokenizer, data=data))

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
        if errors and len(errors) == len(attempts):
            raise errors[0][1]
        for name, error in errors:
            self._add(Failure(**{"why": str(error), kind: name}))
        return [(name, one) for name, one in attempts if not isinstance(one, InputError | OSError)]

    def _add(self, failure: Failure) -> None:
        self.met.append(failure)
        say(str(failure))
