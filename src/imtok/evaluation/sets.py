"""Sets of pictures, read in batches of one size and never held as a whole."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TypeVar

from imtok.config import ConfigError, first_line
from imtok.data.addresses import exists
from imtok.data.pictures import Picture, decode
from imtok.data.rows import as_unicode
from imtok.data.sample import DataError, Dataset, PictureError, Sample
from imtok.evaluation.meters import OriginalPicture
from imtok.evaluation.preprocessing import Preprocessing
from imtok.evaluation.ranks import Ranks, progress_bar, say

Found = TypeVar("Found")

MIN_SIDE = 16
"""Smaller pictures are left out: SSIM's window and VGG16's last layer need so much."""
_BATCH = 16
"""Pictures in a batch, at most."""
_ENTERING, _ORIGINAL = 2**20, 2**22
"""Pixels in a batch, at most: of pictures as they enter a tokenizer, and of originals, to whose size every reconstructor's
reconstruction is brought."""


def name_sets(data: Sequence[str | PathLike[str]]) -> dict[str, str]:
    """Each set's place by the last part of it, or by all of it where that is not unique.

    Raises:
        DataError: there is nothing.
    """
    places = [str(place) for place in data]
    for place in places:
        if not exists(place):
            raise DataError(f"{place}: no such file or folder")
    short = [Path(place).name or place for place in places]
    return {
        as_unicode(name if short.count(name) == 1 else place): place for name, place in zip(short, places, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What was looked at: name, number of pictures and of resampling groups.

    Attributes:
        sha256: of the pictures' own hashes, in their order.
        paths_sha256: of their paths, a line each.
    """

    name: str
    pictures: int
    groups: int
    sha256: str
    paths_sha256: str
    unreadable: int


def check_limits(size: int | None, count: int | None = None) -> None:
    """Before a set is read.

    Raises:
        ConfigError: no picture can be so small, or so few pictures a set.
    """
    if size is not None and size < MIN_SIDE:
        raise ConfigError(f"size must be {MIN_SIDE} or more")
    if count is not None and count < 1:
        raise ConfigError("count must be at least 1")


class EvaluationSet:
    """The readable pictures of a set in batches of one size, and what has been counted of them.

    Attributes:
        name: of the set.
        total: how many there are, readable or not.
        seen: of them so far.
        unreadable: likewise.
        sizes: widths and heights of those that were seen, as they enter.
    """

    def __init__(self, name: str, source: Dataset, fit: Preprocessing, count: int | None) -> None:
        total = len(source) if count is None else min(count, len(source))
        self._rows = [index * len(source) // total for index in range(total)]
        self.name, self._source, self._fit = name, source, fit
        self._groups: dict[str, int] = {}
        self._hash, self._paths_hash = hashlib.sha256(), hashlib.sha256()
        self.total, self.seen, self.unreadable = total, 0, 0
        self.sizes: set[tuple[int, int]] = set()

    def counted(self) -> DatasetSummary:
        """What has been seen so far."""
        return DatasetSummary(
            name=self.name,
            pictures=self.seen,
            groups=len(self._groups),
            sha256=self._hash.hexdigest(),
            paths_sha256=self._paths_hash.hexdigest(),
            unreadable=self.unreadable,
        )

    def how_far(self, error: Exception | KeyboardInterrupt) -> str:
        """How many were seen before an error or Ctrl-C."""
        why = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        return f"after {self.seen} of {self.total} pictures: {why}"

    def evenly_spread(self, number: int) -> set[int]:
        """Rows of at most so many of the pictures."""
        number = min(number, self.total)
        return {self._rows[index * self.total // number] for index in range(number)}

    def samples(self) -> Iterator[Sample]:
        """What is known of the pictures that can be opened, without their bytes where these can be spared."""
        if self.total == len(self._source):
            yield from (sample for sample in self._source.annotations() if sample.path)
            return
        for row in self._rows:
            with suppress(PictureError):
                yield self._source[row]

    def prepared(self) -> Iterator[Picture]:
        """The readable pictures one by one as they enter a tokenizer."""
        for row in self._rows:
            with suppress(PictureError):
                yield self._read(row)[2]

    def readable(self, paths: Collection[str]) -> Iterator[str]:
        """Those of some paths whose pictures can be read to the end."""
        for row in self._rows if paths else ():
            with suppress(PictureError):
                if (path := self._source[row].path) in paths:
                    self._read(row)
                    yield path

    def _read(self, row: int) -> tuple[Sample, Picture, Picture, Picture]:
        """A sample, its picture (both as the fit cuts them), that as it enters the tokenizer, and of that the content.

        Raises:
            PictureError: broken, or too small.
        """
        sample = self._source[row]
        sample, original = self._fit.cut(sample, decode(sample.image, sample.path))
        prepared = self._fit.prepare(original)
        content = self._fit.content(prepared, original)
        if min(content.shape[:2]) < MIN_SIDE:
            raise PictureError(f"{sample.path}: less than {MIN_SIDE} pixels high or wide")
        return sample, original, prepared, content

    def map_batches(
        self, look: Callable[[list[OriginalPicture]], Found], ranks: Ranks, what: str = ""
    ) -> Iterator[tuple[list[int], Found]]:
        """What is found in each batch, and the resampling group of each of its pictures, in the order of the set.

        Args:
            look: at a batch of one prepared size, in one of the processes; see `Ranks.map_in_order`.
            ranks: the processes.
            what: beside the progress bar, if not the set's name.

        Raises:
            ConfigError: not one picture could be read.
        """
        portions = [self._rows[start : start + _BATCH] for start in range(0, self.total, _BATCH)]

        def look_at(rows: list[int]) -> tuple[_Count, list[tuple[int, Found]]]:
            count = _Count()
            return count, [(len(batch), look(batch)) for batch in self._batches(rows, count)]

        with progress_bar(self.total, what or self.name) as bar:
            for rows, (count, batches) in zip(portions, ranks.map_in_order(portions, look_at), strict=True):
                groups = iter(self._add(count))
                for size, found in batches:
                    yield list(islice(groups, size)), found
                bar.update(len(rows))
        if not self.seen:
            raise ConfigError(f"{self.name}: none of the pictures can be read")

    def _batches(self, rows: Sequence[int], count: "_Count") -> Iterator[list[OriginalPicture]]:
        """The readable ones of some pictures in batches of one prepared size; `count` notes what comes by."""
        batch: list[OriginalPicture] = []
        full = 0.0
        for row in rows:
            try:
                sample, original, prepared, content = self._read(row)
            except PictureError as error:
                count.unreadable.append(str(error))
                continue
            count.digests.append(hashlib.sha256(sample.image).digest())
            count.paths.append(sample.path)
            count.clusters.append(sample.cluster or sample.path)
            count.sizes.add((prepared.shape[1], prepared.shape[0]))
            share = max(prepared[..., 0].size / _ENTERING, original[..., 0].size / _ORIGINAL)
            if batch and (full + share > 1 or batch[0].prepared.shape != prepared.shape):
                yield batch
                batch, full = [], 0.0
            batch.append(OriginalPicture(row=row, sample=sample, original=original, prepared=prepared, content=content))
            full += share
        if batch:
            yield batch

    def _add(self, count: "_Count") -> list[int]:
        """More pictures have been seen; the group of each."""
        for digest, path in zip(count.digests, count.paths, strict=True):
            self._hash.update(digest)
            self._paths_hash.update(f"{path}\n".encode())
        for line in count.unreadable:
            say(f"left out: {line}")
        self.sizes |= count.sizes
        self.seen += len(count.paths)
        self.unreadable += len(count.unreadable)
        return [self._groups.setdefault(cluster, len(self._groups)) for cluster in count.clusters]


@dataclass
class _Count:
    """What was found in some of a set's pictures, in their order."""

    digests: list[bytes] = field(default_factory=list)
    """SHA-256 of the file of each one that can be read."""
    paths: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    """What a bootstrap draws together."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Widths and heights."""
    unreadable: list[str] = field(default_factory=list)
    """A line for each of the others."""
