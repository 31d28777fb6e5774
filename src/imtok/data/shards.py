"""Parquet shards of samples: written whole or not at all, read row by row at random."""

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
"""Pictures that are read together; small, so that one picture at random costs little."""

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]
"""A file or folder, or several."""
REQUIRED = ("image", "width", "height")

_METADATA = {
    "imtok": json.dumps({"format_version": FORMAT_VERSION}),
    "huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}),  # datasets then decodes by itself
}
_ANNOTATIONS = ["image.path", *(name for name in SCHEMA.names if name != "image")]


def shard_name(index: int) -> str:
    """The file name of a shard in its folder."""
    return f"data-{index:05d}.parquet"


class ShardWriter:
    """Writes samples to `data-00000.parquet`, `data-00001.parquet`, ... in a folder; a context manager.

    A shard is written under a temporary name and renamed when it is complete, so a file with a shard's name is always a
    whole shard. Leaving the context by an exception abandons the shard that is open; the finished ones stay.

    Args:
        folder: local or any fsspec address; is created.
        samples_per_shard: rows of each shard but the last.
        row_group_size: see `ROW_GROUP_SIZE`.
        first_shard: number of the first shard, to go on where another writer stopped.

    Raises:
        DataError: shards of no samples.
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
        """Add a row; True when it completed a shard (which then stands under its final name)."""
        self._group.append(sample)
        self._rows += 1
        if self._rows == self.samples_per_shard:
            self._finish_shard()
            return True
        if len(self._group) == self.row_group_size:
            self._flush()
        return False

    def close(self) -> None:
        """Complete the shard that is open, if it has rows."""
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
    """Rows of Parquet files at random; the row groups read last stay in memory.

    Holds no open files, so it can be sent to worker processes.

    Raises:
        DataError: nothing there, not Parquet, a required column missing, or shards of a newer imtok.
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
        """One row as plain Python values, 0 <= index < len(self).

        Raises:
            PictureError: its group is broken.
        """
        group = bisect_right(self._starts, index) - 1
        if group not in self._cache:
            shard, number = self._groups[group]
            with _readable(f"{self.paths[shard]}: row group {number}"), open_file(self.paths[shard]) as file:
                self._cache[group] = pq.ParquetFile(file, metadata=self.footers[shard]).read_row_group(number)
            if len(self._cache) > self._cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        with _readable(f"{self.paths[self._groups[group][0]]}: row {index}"):
            return self._cache[group].slice(index - self._starts[group], 1).to_pylist()[0]


class ShardReader(Dataset):
    """The samples of Parquet shards as one random-access sequence.

    Neighbours in the order of reading should be neighbours on disk: they share a row group, which is read once.

    Args:
        paths: a shard, a folder of shards (sorted by name), or a list of those; local or any fsspec address.
        cached_groups: how many row groups stay in memory; the loader shuffles within 32 of each of its two orders
            (see `order`), so with fewer than 64 it reads most groups again and again.

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
        """Every row without its picture (`image` is empty): a quick scan that reads no image bytes."""
        for path, footer in zip(self._rows.paths, self._rows.footers, strict=True):
            try:
                yield from _annotations(path, footer, range(footer.num_row_groups))
            except PictureError:  # then those groups that can be read
                for group in range(footer.num_row_groups):
                    try:
                        yield from _annotations(path, footer, [group])
                    except PictureError:
                        empty = Sample(image=b"", path="", width=0, height=0)
                        yield from [empty] * footer.row_group(group).num_rows


def _annotations(path: str, footer: pq.FileMetaData, groups: Sequence[int]) -> list[Sample]:
    with _readable(path), open_file(path) as file:
        table = pq.ParquetFile(file, metadata=footer).read_row_groups(list(groups), columns=_ANNOTATIONS)
        return [from_row(row) for row in table.to_pylist()]


def find_shards(paths: Paths) -> list[str]:
    """The Parquet files meant by a file, a folder (its files in the order of their names) or a list of both.

    Raises:
        DataError: no such path, or a folder without Parquet files.
    """
    found = []
    for path in [paths] if isinstance(paths, str | PathLike) else paths:
        filesystem, place = locate(path)
        if filesystem.isfile(place):
            found.append(str(path))
            continue
        inside = [join(path, name) for name in list_files(path) if name.endswith(".parquet")]
        if not inside:
            raise DataError(f"{path}: no Parquet shards there")
        found += inside
    return found


def holds_shards(folder: str | PathLike[str]) -> bool:
    """Whether Parquet files lie in a folder; it need not exist."""
    filesystem, place = locate(folder)
    return filesystem.isdir(place) and any(name.endswith(".parquet") for name in list_files(folder))


def to_row(sample: Sample) -> dict[str, Any]:
    """A Sample as the Parquet row that `SCHEMA` describes."""
    row = asdict(sample)
    row["image"] = {"bytes": sample.image, "path": sample.path}
    return row


def from_row(row: dict[str, Any]) -> Sample:
    """The inverse of `to_row`; optional columns may be missing."""
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
    """Whether imtok wrote a Parquet file: others may have columns of the same names.

    Raises:
        DataError: not a Parquet file.
    """
    return b"imtok" in (_read_footer(path, ()).metadata or {})


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
            raise
        reason = first_line(error)
        raise PictureError(f"{what}: broken Parquet ({reason})") from None


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
