"""Evaluation sets, read in batches of pictures of one size and never held in memory as a whole."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
"""Minimum height and width in pixels, for SSIM's window and VGG16's last layer; smaller pictures are left out."""
_BATCH = 16
"""Maximum number of pictures in a batch."""
_MAX_PREPARED_PIXELS, _MAX_ORIGINAL_PIXELS = 2**20, 2**22
"""Maximum number of pixels in a batch: of prepared pictures, and of originals, to whose size every reconstruction is
resized."""


def name_sets(data: Sequence[str | PathLike[str]]) -> dict[str, str]:
    """Return the path of each set by name: the last part of the path, or the whole path where that is not unique.

    Raises:
        DataError: a path does not exist.
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
    """What was measured of a set.

    Attributes:
        name: name of the set.
        pictures: number of pictures that were processed.
        groups: number of groups that the bootstrap resamples.
        sha256: hash of the pictures' own hashes, in the order of the set.
        paths_sha256: hash of the pictures' paths, one per line.
        annotations_sha256: hash of the pictures' words, faces, captions, labels and clusters, one JSON line each.
        unreadable: number of pictures that could not be used.
    """

    name: str
    pictures: int
    groups: int
    sha256: str
    paths_sha256: str
    annotations_sha256: str
    unreadable: int


def check_limits(size: int | None, count: int | None = None) -> None:
    """Validate the picture size and the number of pictures before a set is read.

    Raises:
        ConfigError: the size or the number is too small.
    """
    if size is not None and size < MIN_SIDE:
        raise ConfigError(f"size must be {MIN_SIDE} or more")
    if count is not None and count < 1:
        raise ConfigError("count must be at least 1")


class EvaluationSet:
    """The readable pictures of a set in batches of one size, with running counts.

    Attributes:
        name: name of the set.
        total: number of pictures, readable or not.
        seen: number of readable pictures processed so far.
        unreadable: number of unreadable pictures met so far.
        sizes: widths and heights of the processed pictures as they enter the tokenizer.
    """

    def __init__(self, name: str, source: Dataset, fit: Preprocessing, count: int | None) -> None:
        total = len(source) if count is None else min(count, len(source))
        self._rows = [index * len(source) // total for index in range(total)]
        self.name, self._source, self._fit = name, source, fit
        self._groups: dict[str, int] = {}
        self._hash, self._paths_hash, self._annotations_hash = (hashlib.sha256() for _ in range(3))
        self.total, self.seen, self.unreadable = total, 0, 0
        self.sizes: set[tuple[int, int]] = set()

    def counted(self) -> DatasetSummary:
        """Summarize what has been processed so far."""
        return DatasetSummary(
            name=self.name,
            pictures=self.seen,
            groups=len(self._groups),
            sha256=self._hash.hexdigest(),
            paths_sha256=self._paths_hash.hexdigest(),
            annotations_sha256=self._annotations_hash.hexdigest(),
            unreadable=self.unreadable,
        )

    def how_far(self, error: Exception | KeyboardInterrupt) -> str:
        """Describe how many pictures were processed before an error or Ctrl-C."""
        why = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        return f"after {self.seen} of {self.total} pictures: {why}"

    def evenly_spread(self, number: int) -> set[int]:
        """Return the rows of at most `number` pictures, evenly spread over the set."""
        number = min(number, self.total)
        return {self._rows[index * self.total // number] for index in range(number)}

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of the pictures that can be opened, without image bytes where these can be avoided."""
        if self.total == len(self._source):
            yield from (sample for sample in self._source.annotations() if sample.path)
            return
        for row in self._rows:
            with suppress(PictureError):
                yield self._source[row]

    def prepared(self) -> Iterator[Picture]:
        """Yield the readable pictures as they enter the tokenizer."""
        for row in self._rows:
            with suppress(PictureError):
                yield self._read(self._source[row])[2]

    def readable(self, paths: Collection[str]) -> Iterator[str]:
        """Yield those of some paths whose pictures can be decoded completely."""
        for row in self._rows if paths else ():
            with suppress(PictureError):
                if (sample := self._source[row]).path in paths:
                    self._read(sample)
                    yield sample.path

    def _read(self, sample: Sample) -> tuple[Sample, Picture, Picture, Picture]:
        """Return the sample and its original picture (both after `fit.cut`), the prepared picture, and its content.

        Raises:
            PictureError: the picture is broken or too small.
        """
        sample, original = self._fit.cut(sample, decode(sample.image, sample.path))
        prepared = self._fit.prepare(original)
        content = self._fit.content(prepared, original)
        if min(content.shape[:2]) < MIN_SIDE:
            raise PictureError(f"{sample.path}: less than {MIN_SIDE} pixels high or wide")
        return sample, original, prepared, content

    def map_batches(
        self, look: Callable[[list[OriginalPicture]], Found], ranks: Ranks, what: str = ""
    ) -> Iterator[tuple[list[int], Found]]:
        """Yield, in the order of the set, the groups of each batch's pictures and what `look` returns for the batch.

        Args:
            look: function applied to a batch of one prepared size, on one of the processes; see `Ranks.map_in_order`.
            ranks: the processes.
            what: label of the progress bar; empty: the name of the set.

        Raises:
            ConfigError: none of the pictures can be read.
        """
        portions = [self._rows[start : start + _BATCH] for start in range(0, self.total, _BATCH)]

        def process_portion(rows: list[int]) -> tuple[_PortionSummary, list[tuple[int, Found]]]:
            summary = _PortionSummary()
            return summary, [(len(batch), look(batch)) for batch in self._batches(rows, summary)]

        with progress_bar(self.total, what or self.name) as bar:
            for rows, (summary, batches) in zip(portions, ranks.map_in_order(portions, process_portion), strict=True):
                groups = iter(self._add(summary))
                for size, found in batches:
                    yield list(islice(groups, size)), found
                bar.update(len(rows))
        if not self.seen:
            raise ConfigError(f"{self.name}: none of the pictures can be read")

    def _batches(self, rows: Sequence[int], summary: "_PortionSummary") -> Iterator[list[OriginalPicture]]:
        """Yield the readable pictures of some rows in batches of one prepared size, and record them in `summary`."""
        batch: list[OriginalPicture] = []
        fill = 0.0
        for row in rows:
            try:
                annotated = self._source[row]
                sample, original, prepared, content = self._read(annotated)
            except PictureError as error:
                summary.unreadable.append(str(error))
                continue
            summary.digests.append(hashlib.sha256(sample.image).digest())
            summary.paths.append(sample.path)
            summary.annotations.append(_serialized(annotated))
            summary.clusters.append(sample.cluster or sample.path)
            summary.sizes.add((prepared.shape[1], prepared.shape[0]))
            share = max(prepared[..., 0].size / _MAX_PREPARED_PIXELS, original[..., 0].size / _MAX_ORIGINAL_PIXELS)
            if batch and (fill + share > 1 or batch[0].prepared.shape != prepared.shape):
                yield batch
                batch, fill = [], 0.0
            batch.append(OriginalPicture(row=row, sample=sample, original=original, prepared=prepared, content=content))
            fill += share
        if batch:
            yield batch

    def _add(self, summary: "_PortionSummary") -> list[int]:
        """Add a portion's pictures to the running counts, and return the group of each."""
        for digest, path, annotations in zip(summary.digests, summary.paths, summary.annotations, strict=True):
            self._hash.update(digest)
            self._paths_hash.update(f"{path}\n".encode())
            self._annotations_hash.update(f"{annotations}\n".encode())
        for line in summary.unreadable:
            say(f"left out: {line}")
        self.sizes |= summary.sizes
        self.seen += len(summary.paths)
        self.unreadable += len(summary.unreadable)
        return [self._groups.setdefault(cluster, len(self._groups)) for cluster in summary.clusters]


@dataclass
class _PortionSummary:
    """What was read of a portion of a set, in the order of its pictures."""

    digests: list[bytes] = field(default_factory=list)
    """SHA-256 of the file of each readable picture."""
    paths: list[str] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    """Cluster of each readable picture, or else its path; the bootstrap resamples whole clusters."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Widths and heights of the prepared pictures."""
    unreadable: list[str] = field(default_factory=list)
    """One message for each unreadable picture."""


def _serialized(sample: Sample) -> str:
    """Return a picture's annotations as one line of JSON."""
    regions = [
        None if found is None else [asdict(region) for region in found] for found in (sample.words, sample.faces)
    ]
    # Coordinates of sets in memory may be of NumPy's types.
    return json.dumps([*regions, sample.captions, sample.label, sample.cluster], default=float)
