"""What networks say of original pictures, kept on disk: another tokenizer on the same set need not ask them again."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from imtok.evaluation.meters import OriginalPicture
from imtok.evaluation.reproduction import versions
from imtok.pretrained.packages import cache_folder

LIMIT = 2**30
"""Bytes of answers, enough for Inception's features of 50,000 pictures; what is beyond, the oldest first, is dropped
when an evaluation ends."""
REVISION = 1
"""To be raised when an original is cut out, aligned or handed to a judge in another way."""


def default_file() -> Path:
    """`$XDG_CACHE_HOME/imtok/evaluation.sqlite`; to empty the cache, delete it."""
    return cache_folder() / "evaluation.sqlite"


class EvaluationCache:
    """Answers by key in one SQLite file, or none at all; a context manager.

    A file that cannot be read or written is no error: the judges are asked instead.

    Args:
        file: None keeps nothing.
        limit: bytes of answers that stay.
    """

    def __init__(self, file: Path | None = None, limit: int = LIMIT) -> None:
        self._limit = limit
        self._database: sqlite3.Connection | None = None
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(file, timeout=30)
                self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
            except (OSError, sqlite3.Error):
                self._close()

    def __enter__(self) -> "EvaluationCache":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bytes_in_use() > self._limit:  # adding up the answers would read them all
            newer = "SELECT rowid, SUM(LENGTH(answer)) OVER (ORDER BY rowid DESC) AS size FROM answers"
            self._write(
                f"DELETE FROM answers WHERE rowid IN (SELECT rowid FROM ({newer}) WHERE size > ?)", [(self._limit,)]
            )
        self._close()

    def get_or_compute(self, keys: Sequence[str | None], ask: Callable[[list[int]], list[Any]]) -> list[Any]:
        """The answer of each key.

        Args:
            keys: see `key_of`; None for what shall not be kept.
            ask: gives the answers, made of what JSON knows, at these places of `keys`; asked for those not known.
        """
        known = {index: answer for index, key in enumerate(keys) if (answer := self._read(key)) is not None}
        missing = [index for index in range(len(keys)) if index not in known]
        if missing:
            made = dict(zip(missing, ask(missing), strict=True))
            rows = [(key, json.dumps(made[index])) for index in missing if (key := keys[index]) is not None]
            self._write("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            known |= made
        return [known[index] for index in range(len(keys))]

    def _read(self, key: str | None) -> Any:
        if self._database is None or key is None:
            return None
        try:
            row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError):
            return None

    def _bytes_in_use(self) -> int:
        if self._database is None:
            return 0
        try:
            pages, free, size = (
                self._database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        except sqlite3.Error:
            return 0
        return (pages - free) * size

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._database is None:
            return
        try:
            with self._database:  # a transaction
                self._database.executemany(statement, rows)
        except sqlite3.Error:
            self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


@runtime_checkable
class Judge(Protocol):
    """Who answers: the name, and the hash of the weights; an empty one is not known."""

    name: str
    sha256: str


def key_of(judge: Judge, image: bytes, regions: Sequence[Any]) -> str | None:
    """The hash of all that an answer depends on; None for a judge whose weights are not known.

    Args:
        judge: who answers.
        image: the encoded picture.
        regions: of it, made of what JSON knows.
    """
    if not judge.sha256:
        return None
    software = [REVISION, versions()]  # of what decodes and cuts the picture, too
    asked = [judge.name, judge.sha256, hashlib.sha256(image).hexdigest(), regions, software]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def keys_of(judge: Judge, shown: Sequence[OriginalPicture], regions: Sequence[Sequence[Any]]) -> list[str | None]:
    """Likewise of each picture, of which an evaluation may have cut out a part; None for one without regions."""
    of_each = zip(shown, regions, strict=True)
    return [key_of(judge, one.sample.image, [one.original.shape[:2], *some]) if some else None for one, some in of_each]
