"""Disk cache of network outputs for original pictures, reused when other tokenizers are evaluated on the same set."""

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
"""Maximum bytes of cached outputs, enough for the Inception features of 50,000 pictures; at the end of an evaluation,
the oldest ones beyond this limit are deleted."""
REVISION = 1
"""Must be incremented whenever an original is cropped, aligned or passed to a judge differently."""


def default_file() -> Path:
    """Return `$XDG_CACHE_HOME/imtok/evaluation.sqlite`; delete this file to empty the cache."""
    return cache_folder() / "evaluation.sqlite"


class EvaluationCache:
    """Network outputs by key in one SQLite file, or no cache at all; a context manager.

    A file that cannot be read or written is no error: the outputs are then computed.

    Args:
        file: SQLite file; None caches nothing.
        limit: maximum bytes of outputs that are kept.
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
        if self._bytes_in_use() > self._limit:  # cheaper than summing the lengths of all outputs, which reads them all
            newer = "SELECT rowid, SUM(LENGTH(answer)) OVER (ORDER BY rowid DESC) AS size FROM answers"
            self._write(
                f"DELETE FROM answers WHERE rowid IN (SELECT rowid FROM ({newer}) WHERE size > ?)", [(self._limit,)]
            )
        self._close()

    def get_or_compute(self, keys: Sequence[str | None], compute: Callable[[list[int]], list[Any]]) -> list[Any]:
        """Return the output for each key.

        Args:
            keys: keys made by `key_of`; None for an output that is not cached.
            compute: function from positions in `keys` to the outputs at these positions, which must be
                JSON-serializable; called with the positions of all outputs that are not in the cache.
        """
        known = {index: output for index, key in enumerate(keys) if (output := self._read(key)) is not None}
        missing = [index for index in range(len(keys)) if index not in known]
        if missing:
            computed = dict(zip(missing, compute(missing), strict=True))
            rows = [(key, json.dumps(computed[index])) for index in missing if (key := keys[index]) is not None]
            self._write("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            known |= computed
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
    """A network whose outputs are cached: its name, and the hash of its weights, which is empty if unknown."""

    name: str
    sha256: str


def key_of(judge: Judge, image: bytes, regions: Sequence[Any]) -> str | None:
    """Return the hash of everything that an output depends on; None for a judge whose weights are not known.

    Args:
        judge: the network that computes the output.
        image: the encoded picture.
        regions: JSON-serializable description of the regions of the picture that are evaluated.
    """
    if not judge.sha256:
        return None
    software = [REVISION, versions()]  # includes the libraries that decode and crop the picture
    dependencies = [judge.name, judge.sha256, hashlib.sha256(image).hexdigest(), regions, software]
    return hashlib.sha256(json.dumps(dependencies).encode()).hexdigest()


def keys_of(judge: Judge, originals: Sequence[OriginalPicture], regions: Sequence[Sequence[Any]]) -> list[str | None]:
    """Return the key of each picture, which may be a crop of its file; None for a picture without regions."""
    pairs = zip(originals, regions, strict=True)
    return [
        key_of(judge, picture.sample.image, [picture.original.shape[:2], *picture_regions]) if picture_regions else None
        for picture, picture_regions in pairs
    ]
