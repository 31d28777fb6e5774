"""Parquet shards of samples: written atomically, read with random access to rows."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from os import PathLike
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imtok.config import FORMAT_VERSION, first_line
from imtok.data.addresses import join, list_files, locate, open_file
from imtok.data.sample import SCHEMA, DataError, Dataset, Face, PictureError, Point, Sample, TextRegion

ROW_GROUP_SIZE = 32
"""Rows that are read together; small, so that reading a single random picture is cheap."""

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]
"""A file or folder, or several of them."""
REQUIRED = ("image", "width", "height")

_METADATA = {
    "imtok": json.dumps({"format_version": FORMAT_VERSION}),
    "huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}),  # for decoding by datasets
}
_ANNOTATIONS = ["image.path", *(name for name in SCHEMA.names if name != "image")]


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"data-{index:05d}.parquet"


class ShardWriter:
    """Writes samples to `data-00000.parquet`, `data-00001.parquet`, ... in a folder; a context manager.

    A shard is written under a temporary name and renamed when it is complete, so a file with a shard's name is always
    complete. Leaving the context by an exception discards the open shard; the finished ones stay.

    Args:
        folder: local folder or fsspec address, which is created.
        samples_per_shard: number of rows of each shard but the last.
        row_group_size: rows that are read together; see `ROW_GROUP_SIZE`.
        first_shard: number of the first shard, to continue where another writer stopped.

    Raises:
        DataError: `samples_per_shard` is less than 1.
    """

    def __init__(
        self,
        folder: str,
        samples_per_shard: int = 1024,
        row_group_size: int = ROW_GROUP_SIZE,
        first_shard: int = 0,
    ) -> None:
        if samples_per_shard < 1:
            raise DataError(f"samples_per_shard = {samples_per_shard} must be at least 1")
        self.filesystem, self.folder = locate(folder)
        self.filesystem.makedirs(self.folder, exist_ok=True)
        self.samples_per_shard = samples_per_shard
        self.row_group_size = row_group_size
        self.finished_shards = first_shard
        self._group: list[Sample] = []
        self._rows = 0
        self._parquet: pq.ParquetWriter | None = None
        self._file: Any = None

    def write(self, sample: Sample) -> bool:
        """Add a row; return True if it completed a shard, which then has its final name."""
        self._group.append(sample)
        self._rows += 1
        if self._rows == self.samples_per_shard:
            self._finish_shard()
            return True
        if len(self._group) == self.row_group_size:
            self._flush()
        return False

    def close(self) -> None:
        """Finish the open shard, if it has rows."""
        if self._rows:
            self._finish_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._parquet is not None:
            self._close_file()
            self.filesystem.rm(self._partial)

    @property
    def _path(self) -> str:
        return f"{self.folder}/{shard_name(self.finished_shards)}"

    @property
    def _partial(self) -> str:
        return f"{self._path}.partial"

    def _flush(self) -> None:
        if self._parquet is None:
            self._file = self.filesystem.open(self._partial, "wb")
            schema = SCHEMA.with_metadata(_METADATA)
            self._parquet = pq.ParquetWriter(self._file, schema, use_dictionary=False)
        rows = [to_row(sample) for sample in self._group]
        self._parquet.write_table(pa.Table.from_pylist(rows, schema=self._parquet.schema))
        self._group = []

    def _finish_shard(self) -> None:
        if self._group:
            self._flush()
        self._close_file()
        self.filesystem.mv(self._partial, self._path)
        self._rows = 0
        self.finished_shards += 1

    def _close_file(self) -> None:
        assert self._parquet is not None
        self._parquet.close()
        self._file.close()
        self._parquet = None


class RowGroups:
    """Random access to the rows of Parquet files, with a cache of the most recently used row groups.

    Holds no open files, so it can be pickled to worker processes.

    Raises:
        DataError: there are no files, a file is not Parquet or lacks a required column, or a newer imtok wrote it.
    """

    def __init__(self, paths: Paths, required: tuple[str, ...], cached_groups: int = 1) -> None:
        self.paths = find_shards(paths)
        self.footers = [_read_footer(path, required) for path in self.paths]
        groups = [(shard, range(footer.num_row_groups)) for shard, footer in enumerate(self.footers)]
        self._groups = [(shard, group) for shard, numbers in groups for group in numbers]
        sizes = [self.footers[shard].row_group(group).num_rows for shard, group in self._groups]
        self._starts = list(accumulate(sizes, initial=0))
        self._cached_groups = cached_groups
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> dict[str, Any]:
        """Read one row as plain Python values, 0 <= index < len(self).

        Raises:
            PictureError: the row group is broken.
        """
        group = bisect_right(self._starts, index) - 1
        if group not in self._cache:
            shard, number = self._groups[group]
            with _as_picture_error(f"{self.paths[shard]}: row group {number}"), open_file(self.paths[shard]) as file:
                self._cache[group] = pq.ParquetFile(file, metadata=self.footers[shard]).read_row_group(number)
            if len(self._cache) > self._cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        with _as_picture_error(f"{self.paths[self._groups[group][0]]}: row {index}"):
            return self._cache[group].slice(index - self._starts[group], 1).to_pylist()[0]


class ShardReader(Dataset):
    """The samples of Parquet shards as one random-access sequence.

    Rows that are close in reading order should be close on disk: they then share a row group, which is read once.

    Args:
        paths: a shard, a folder of shards (sorted by name), or a list of those; local or at any fsspec address.
        cached_groups: number of row groups kept in memory; the loader shuffles within windows of 32 groups in each of
            its two orders (see `order`), so with fewer than 64 it reads most groups repeatedly.

    Raises:
        DataError: see `RowGroups`.
    """

    def __init__(self, paths: Paths, cached_groups: int = 64) -> None:
        self._rows = RowGroups(paths, REQUIRED, cached_groups)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        return from_row(self._rows.read(index))

    def annotations(self) -> Iterator[Sample]:
        """Yield every row without its picture (`image` is empty): a quick scan that reads no image bytes."""
        for path, footer in zip(self._rows.paths, self._rows.footers, strict=True):
            try:
                yield from _annotations(path, footer, range(footer.num_row_groups))
            except PictureError:  # then read group by group, to skip only the broken ones
                for group in range(footer.num_row_groups):
                    try:
                        yield from _annotations(path, footer, [group])
                    except PictureError:
                        empty = Sample(image=b"", path="", width=0, height=0)
                        yield from [empty] * footer.row_group(group).num_rows


def _annotations(path: str, footer: pq.FileMetaData, groups: Sequence[int]) -> list[Sample]:
    with _as_picture_error(path), open_file(path) as file:
        table = pq.ParquetFile(file, metadata=footer).read_row_groups(list(groups), columns=_ANNOTATIONS)
        return [from_row(row) for row in table.to_pylist()]


def find_shards(paths: Paths) -> list[str]:
    """Return the Parquet files given by a file, a folder (its files sorted by name) or a list of both.

    Raises:
        DataError: a path does not exist, or a folder has no Parquet files.
    """
    found = []
    for path in [paths] if isinstance(paths, str | PathLike) else paths:
        filesystem, place = locate(path)
        if filesystem.isfile(place):
            found.append(str(path))
            continue
        files = [join(path, name) for name in list_files(path) if name.endswith(".parquet")]
        if not files:
            raise DataError(f"{path}: no Parquet shards there")
        found += files
    return found


def holds_shards(folder: str | PathLike[str]) -> bool:
    """Return whether a folder contains Parquet files; it need not exist."""
    filesystem, place = locate(folder)
    return filesystem.isdir(place) and any(name.endswith(".parquet") for name in list_files(folder))


def to_row(sample: Sample) -> dict[str, Any]:
    """Convert a Sample to a Parquet row with the columns of `SCHEMA`."""
    row = asdict(sample)
    row["image"] = {"bytes": sample.image, "path": sample.path}
    return row


def from_row(row: dict[str, Any]) -> Sample:
    """Convert a Parquet row to a Sample, the inverse of `to_row`; optional columns may be missing."""
    words, faces = row.get("words"), row.get("faces")
    return Sample(
        image=row["image"].get("bytes") or b"",
        path=row["image"].get("path") or "",
        width=row["width"],
        height=row["height"],
        words=None if words is None else [_word(word) for word in words],
        faces=None if faces is None else [_face(face) for face in faces],
        captions=row.get("captions") or [],
        label=row.get("label"),
        source=row.get("source"),
        cluster=row.get("cluster"),
    )


def _word(word: dict[str, Any]) -> TextRegion:
    return TextRegion(box=tuple(word["box"]), text=word["text"], quad=_points(word["quad"]), score=word["score"])


def _face(face: dict[str, Any]) -> Face:
    return Face(box=tuple(face["box"]), landmarks=_points(face["landmarks"]), score=face["score"])


def _points(points: list[list[float]] | None) -> tuple[Point, ...] | None:
    return None if points is None else tuple((x, y) for x, y in points)


def is_shard(path: str) -> bool:
    """Return whether imtok wrote a Parquet file; those of other origin may have columns of the same names.

    Raises:
        DataError: the file is not a Parquet file.
    """
    return b"imtok" in (_read_footer(path, ()).metadata or {})


@contextmanager
def _as_picture_error(subject: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the file's content
            raise
        reason = first_line(error)
        raise PictureError(f"{subject}: broken Parquet ({reason})") from None


def _read_footer(path: str, required: tuple[str, ...]) -> pq.FileMetaData:
    try:
        with open_file(path) as file:
            footer = pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None
    names = footer.schema.to_arrow_schema().names
    if missing := [column for column in required if column not in names]:
        raise DataError(f"{path}: has no column {missing[0]!r}; imtok annotate makes shards of most collections")
    version = json.loads((footer.metadata or {}).get(b"imtok", b"{}")).get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, this imtok reads {FORMAT_VERSION}; install a newer one")
    return footer
