"""Places of files: a local path or any fsspec address (`memory://x`, `zip://folder::pictures.zip`, `s3://bucket/x`)."""

import json
import os
import weakref
from collections.abc import Iterator
from os import PathLike
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from imtok.config import first_line
from imtok.data.sample import DataError


def locate(address: str | PathLike[str]) -> tuple[Any, str]:
    """The filesystem of an address, and the place in it; a local file may be called as if it were an address.

    Raises:
        DataError: empty, or no filesystem that is installed has such addresses.
    """
    if not str(address):
        raise DataError("an empty name is no file or folder; is a variable of the shell unset?")
    if os.path.exists(address):
        return LocalFileSystem(), os.path.abspath(address)
    try:
        return fsspec.url_to_fs(str(address))
    except Exception as error:  # each filesystem has errors of its own
        reason = first_line(error)
        raise DataError(f"{address}: cannot be opened ({reason})") from None


def open_file(address: str | PathLike[str], compression: str | None = None) -> Any:
    """A file for reading bytes, to be closed by the caller.

    Raises:
        DataError: as `locate`.
        OSError: no such file, or it cannot be read.
    """
    filesystem, place = locate(address)
    file = filesystem.open(place, "rb", compression=compression)
    # A forgotten archive closes itself, and with it the files that are open in it.
    weakref.finalize(file, lambda _: None, filesystem).atexit = False
    return file


def file_part(address: str | PathLike[str]) -> str:
    """An address without that of the archive behind its `::`; it ends with the file's suffix."""
    return str(address).partition("::")[0]


def is_address(name: str) -> bool:
    """Whether a name out of somebody's table or archive leads elsewhere, if it is made part of an address."""
    return "://" in name or "::" in name


def local_place(address: str | PathLike[str]) -> str | None:
    """The absolute path of a local file or folder, be it there or not; None for any other address.

    Raises:
        DataError: as `locate`.
    """
    filesystem, place = locate(address)
    return place if isinstance(filesystem, LocalFileSystem) else None


def list_files(folder: str | PathLike[str], deep: bool = False) -> list[str]:
    """Names of the files in a folder, relative to it and sorted; with `deep` those in sub-folders too.

    Raises:
        OSError: a local folder that cannot be listed.
        DataError: an archive with a name in it that leads elsewhere.
    """
    filesystem, root = locate(folder)
    root = root.rstrip("/")
    if isinstance(filesystem, LocalFileSystem):  # whose own search passes over links, and over what it cannot list
        return sorted(_local_files(root, deep)) if os.path.isdir(root) else []
    found = filesystem.find(root, maxdepth=None if deep else 1)
    names = sorted(file[len(root) :].lstrip("/") for file in found)
    if elsewhere := [name for name in names if is_address(name)]:
        raise DataError(f"{folder}: holds a file called {elsewhere[0]!r}, which is an address; rename it")
    return names


def _local_files(folder: str, deep: bool, above: tuple[str, ...] = ()) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in above:  # a link that leads back
        return
    with os.scandir(folder or "/") as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.name
            elif deep:
                yield from (f"{entry.name}/{file}" for file in _local_files(entry.path, deep, (*above, here)))


def exists(address: str | PathLike[str]) -> bool:
    """Whether there is such a file or folder."""
    filesystem, place = locate(address)
    return filesystem.exists(place)


def join(folder: str | PathLike[str], name: str) -> str:
    """The address of a file named relative to its folder; an archive's own address stays behind its `::`."""
    head, chain, archive = str(folder).partition("::")
    separator = "" if head.endswith(("/", "://")) or not head else "/"
    return f"{head}{separator}{name}{chain}{archive}"


def parent(address: str) -> str:
    """The folder of a file, as an address."""
    head, chain, archive = address.partition("::")
    scheme, mark, place = head.rpartition("://")
    return f"{scheme}{mark}{place.rpartition('/')[0]}{chain}{archive}"


def read_text(address: str | PathLike[str]) -> str | None:
    """What a text file holds; None where there is no such file."""
    filesystem, place = locate(address)
    try:
        return filesystem.cat_file(place).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_json(address: str | PathLike[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file.

    Raises:
        DataError: the file holds something else.
    """
    try:
        text = read_text(address)
        values = None if text is None else json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{address}: not JSON ({error})") from None
    if text is not None and not isinstance(values, dict):
        raise DataError(f"{address}: holds a {type(values).__name__}, expected a JSON object")
    return values


def write_text(address: str | PathLike[str], text: str) -> None:
    """Write a text file under a temporary name and rename it; its folder is created."""
    filesystem, place = locate(address)
    filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(f"{place}.partial", text.encode("utf-8"))
    filesystem.mv(f"{place}.partial", place)
