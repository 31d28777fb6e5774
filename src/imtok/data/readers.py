"""Readers of picture collections (shards, folders, tables, tars) as random-access sequences of samples."""

import csv
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import PurePosixPath
from typing import Any

from imtok.data.addresses import file_part, is_address, join, list_files, local_place, locate, open_file, parent
from imtok.data.npz import NpzDataset
from imtok.data.pictures import MAX_BYTES, read_bytes
from imtok.data.rows import make_sample
from imtok.data.sample import DataError, Dataset, PictureError, Sample
from imtok.data.shards import RowGroups, ShardReader, is_shard
from imtok.data.tokbench import TokBenchDataset, is_tokbench

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
PARQUET_SUFFIXES = (".parquet",)
TABLE_SUFFIXES = (".jsonl", ".csv")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_SCORES_FILE = "items.jsonl"
"""The file of per-picture scores that an evaluation writes; it names pictures, but is not read as a table of them."""
IMAGE_COLUMNS = ("image", "file", "file_name", "filename", "path")
"""Column names for a table's pictures, which are given by absolute paths or relative to the table's folder."""


def open_dataset(path: str | PathLike[str]) -> Dataset:
    """Open a collection of pictures and their annotations, local or at any fsspec address.

    * `*.parquet`, or a folder with such files: shards of imtok, or other Parquet files with an `image` column.
    * `*.jsonl`, `*.csv`, or a folder with exactly one such file: a table of pictures (see `TableDataset`).
    * `*.tar`, `*.tar.gz`, or a folder with such files: WebDataset (see `TarDataset`).
    * `*.npz`: pictures in the format of ADM's evaluation (see `NpzDataset`).
    * an annotation file of TokBench, or the folder of its release (see `TokBenchDataset`).
    * any other folder: its pictures and those of its sub-folders (see `FolderDataset`).

    Raises:
        DataError: the path does not exist, holds nothing readable or no pictures, or is a folder with several tables.
    """
    source = _open(str(path))
    if not len(source):
        raise DataError(f"{path}: no pictures there")
    return source


def fingerprint(path: str | PathLike[str], suffixes: tuple[str, ...] = ()) -> str:
    """Return a hash of the names and sizes of a source's files; empty for a remote source, where it would be expensive.

    Args:
        path: as for `open_dataset`; of a file, such as a table, only the file itself is hashed. A path that does not
            exist has an empty fingerprint.
        suffixes: for a folder of other files, such as a model or fonts: hash the files with these suffixes, in
            sub-folders too.

    Raises:
        DataError: no installed filesystem can open the address.
    """
    place = local_place(path)
    if place is None or not os.path.exists(place):
        return ""
    if os.path.isdir(place) and suffixes:
        files = [name for name in list_files(path, deep=True) if name.lower().endswith(suffixes)]
    elif os.path.isdir(place):
        names = list_files(path)
        files = [name for name in names if name.lower().endswith(PARQUET_SUFFIXES + TAR_SUFFIXES)] or [
            *(name for name in names if name.lower().endswith(TABLE_SUFFIXES) and name != _SCORES_FILE),
            *(name for name in list_files(path, deep=True) if name.lower().endswith(IMAGE_SUFFIXES)),
        ]
    else:
        place, name = os.path.split(place)
        files = [name]
    sizes = [f"{name} {_size(os.path.join(place, name))}\n" for name in files]
    return hashlib.sha256("".join(sizes).encode("utf-8", "backslashreplace")).hexdigest()


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except FileNotFoundError:  # a broken link, which counts as an unreadable picture
        return -1


def _open(path: str) -> Dataset:
    filesystem, place = locate(path)
    if filesystem.isfile(place):
        return _open_files([path])
    if not filesystem.isdir(place):
        raise DataError(f"{path}: no such file or folder")
    names = list_files(path)
    for suffixes in (PARQUET_SUFFIXES, TAR_SUFFIXES):
        if files := [join(path, name) for name in names if name.lower().endswith(suffixes)]:
            return _open_files(files)
    if is_tokbench(path):
        return TokBenchDataset(path)
    tables = [join(path, name) for name in names if name.lower().endswith(TABLE_SUFFIXES) and name != _SCORES_FILE]
    tables = [table for table in tables if _lists_images(table)]
    if len(tables) > 1:
        raise DataError(f"{path}: holds {len(tables)} tables of images; name the one to read")
    return TableDataset(tables[0]) if tables else FolderDataset(path)


def _open_files(files: list[str]) -> Dataset:
    kind = file_part(files[0]).lower()
    if kind.endswith(PARQUET_SUFFIXES):
        return ShardReader(files) if is_shard(files[0]) else ParquetDataset(files)
    if kind.endswith(TAR_SUFFIXES):
        return TarDataset(files)
    if kind.endswith(TABLE_SUFFIXES):
        return TableDataset(files[0])
    if kind.endswith(".npz"):
        return NpzDataset(files[0])
    if kind.endswith(".json"):
        return TokBenchDataset(files[0])
    raise DataError(f"{files[0]}: expected a folder, or a .parquet, .jsonl, .csv, .tar or .npz file")


class FolderDataset(Dataset):
    """The pictures of a folder and its sub-folders, in the order of their paths.

    If the folder has at least two sub-folders and no picture outside of them, these are taken as classes: a picture's
    label is the name of its top-level sub-folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files = [file for file in list_files(folder, deep=True) if file.lower().endswith(IMAGE_SUFFIXES)]
        top_folders = {file.partition("/")[0] if "/" in file else None for file in self._files}
        self._has_classes = None not in top_folders and len(top_folders) > 1

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Sample:
        file = self._files[index]
        label = file.partition("/")[0] if self._has_classes else None
        return make_sample(read_bytes(join(self._folder, file)), file, {"label": label})


class TableDataset(Dataset):
    """Pictures listed in a JSONL or CSV file, with their annotations in its columns.

    See `make_sample` for the columns; CSV cells that hold lists (words, faces, captions) are JSON.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows = list(read_table(path))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        line, row = self._rows[index]
        file = image_of(row)
        if file is None:
            raise PictureError(f"{self._path}:{line}: no column named {', '.join(IMAGE_COLUMNS)}")
        if is_address(file):
            raise PictureError(f"{file}: an address; a table names its pictures by their paths")
        place = file if file.startswith("/") else join(parent(self._path), file)
        return make_sample(read_bytes(place), file, row)


class ParquetDataset(Dataset):
    """Parquet files of other origin: an `image` column (bytes, or a struct with `bytes`) and any of imtok's columns."""

    def __init__(self, paths: list[str]) -> None:
        self._rows = RowGroups(paths, required=("image",))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        row = self._rows.read(index)
        image = row.pop("image")
        if isinstance(image, Mapping):
            image, name = image.get("bytes"), image.get("path")
        else:
            name = row.get("path")
        name = f"{index:08d}/{name}" if name else f"{index:08d}"  # stored names may lack the folder and repeat
        if not isinstance(image, bytes):
            raise PictureError(f"{name}: the row holds no image bytes")
        return make_sample(image, name, row)


class TarDataset(Dataset):
    """WebDataset tars: files that share a name up to its first dot are one picture and its annotations.

    `.jpg`, `.png` and the other image suffixes hold the picture, `.txt` a caption, `.cls` a label, `.json` any columns
    of `make_sample`. Members are read from within the tar, which is not extracted.
    """

    def __init__(self, paths: list[str]) -> None:
        self._rows = [(path, key, members) for path in paths for key, members in _index_tar(path)]
        self._open: tuple[str, Any] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        path, key, members = self._rows[index]
        name = f"{PurePosixPath(path).name}/{key}"
        row: dict[str, Any] = {}
        image = None
        for suffix, (offset, size) in members.items():
            if f".{suffix}" not in (*IMAGE_SUFFIXES, ".txt", ".cls", ".json"):
                continue
            if size > MAX_BYTES:
                raise PictureError(f"{name}.{suffix}: larger than {MAX_BYTES} bytes")
            data = self._read_at(path, offset, size)
            if f".{suffix}" in IMAGE_SUFFIXES:
                image, name = data, f"{name}.{suffix}"
                continue
            text = data.decode("utf-8", errors="replace").strip()
            if suffix == "json":
                row |= _parse_object(text, f"{name}.json", PictureError)
            else:
                row |= {"caption" if suffix == "txt" else "label": text}
        if image is None:
            raise PictureError(f"{name}: no picture beside {', '.join(sorted(members))}")
        return make_sample(image, name, row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _read_at(self, path: str, offset: int, size: int) -> bytes:
        if self._open is None or self._open[0] != path:
            if self._open is not None:
                self._open[1].close()
            self._open = path, _open_tar(path)
        self._open[1].seek(offset)
        return self._open[1].read(size)


def image_of(row: Mapping[str, Any]) -> str | None:
    """Return the path of a table row's picture as given in the table, or None."""
    return next((str(row[column]) for column in IMAGE_COLUMNS if row.get(column)), None)


def read_table(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the content of each row of a JSONL or CSV file.

    Raises:
        DataError: the file is not UTF-8, or a line is not a JSON object.
    """
    csv.field_size_limit(MAX_BYTES)  # a cell may hold all words of a document page
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            if file_part(path).lower().endswith(".csv"):
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse_object(line, f"{path}:{number}")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{path}: not CSV ({error})") from None


def _lists_images(path: str) -> bool:
    _, first = next(read_table(path), (0, {}))
    return image_of(first) is not None


def _parse_object(text: str, where: str, error_type: type[DataError] = DataError) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise error_type(f"{where}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _open_tar(path: str) -> Any:
    """Open the stream of tar blocks, decompressed on the fly if the file name ends with gz."""
    return open_file(path, compression="gzip" if file_part(path).lower().endswith("gz") else None)


def _index_tar(path: str) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Return, per key in the order of the tar, a map from suffix to offset and size of the member."""
    keys: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with _open_tar(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isreg() and stem and suffix:
                    key = f"{folder}/{stem}" if folder else stem
                    keys.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
            file.seek(tar.offset)  # tarfile treats a damaged or missing header as the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path}: the tar is cut off or damaged after {tar.offset} bytes")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: not a readable tar ({error})") from None
    return list(keys.items())
