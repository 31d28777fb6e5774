"""Files by address: a local path or an fsspec URL (`memory://x`, `zip://folder::pictures.zip`, `s3://bucket/x`)."""

import hashlib
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
    """Return the fsspec filesystem of an address and the path within it.

    An existing local path is taken as such, even if its name looks like a URL.

    Raises:
        DataError: the address is empty, or no installed filesystem can open it.
    """
    if not str(address):
        raise DataError("an empty name is no file or folder; is a variable of the shell unset?")
    if os.path.exists(address):
        return LocalFileSystem(), os.path.abspath(address)
    try:
        return fsspec.url_to_fs(str(address))
    except Exception as error:  # the exception types depend on the filesystem
        reason = first_line(error)
        raise DataError(f"{address}: cannot be opened ({reason})") from None


def open_file(address: str | PathLike[str], compression: str | None = None) -> Any:
    """Open a file for reading bytes; the caller closes it.

    Raises:
        DataError: as `locate`.
        OSError: no such file, or it cannot be read.
    """
    filesystem, path = locate(address)
    file = filesystem.open(path, "rb", compression=compression)
    # Keep the filesystem alive as long as the file: a garbage-collected archive closes the files open in it.
    weakref.finalize(file, lambda _: None, filesystem).atexit = False
    return file


def sha256_of_address(address: str | PathLike[str]) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: as `locate`.
        OSError: no such file, or it cannot be read.
    """
    with open_file(address) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_part(address: str | PathLike[str]) -> str:
    """Return the part of an address before any `::`, which ends with the file's own suffix."""
    return str(address).partition("::")[0]


def is_address(name: str) -> bool:
    """Return whether a name read from a table or archive would change the location of an address it is joined to."""
    return "://" in name or "::" in name


def local_place(address: str | PathLike[str]) -> str | None:
    """Return the absolute path of a local file or folder, which need not exist; None for any other address.

    Raises:
        DataError: as `locate`.
    """
    filesystem, path = locate(address)
    return path if isinstance(filesystem, LocalFileSystem) else None


def list_files(folder: str | PathLike[str], deep: bool = False) -> list[str]:
    """Return the sorted names of the files in a folder, relative to it; with `deep`, those in sub-folders too.

    Raises:
        OSError: a local folder that cannot be listed.
        DataError: an archive or remote folder holds a name that would change the location it is joined to.
    """
    filesystem, root = locate(folder)
    root = root.rstrip("/")
    if isinstance(filesystem, LocalFileSystem):  # fsspec's search skips links and unreadable folders
        return sorted(_local_files(root, deep)) if os.path.isdir(root) else []
    found = filesystem.find(root, maxdepth=None if deep else 1)
    names = sorted(file[len(root) :].lstrip("/") for file in found)
    if elsewhere := [name for name in names if is_address(name)]:
        raise DataError(f"{folder}: holds a file called {elsewhere[0]!r}, which is an address; rename it")
    return names


def _local_files(folder: str, deep: bool, ancestors: tuple[str, ...] = ()) -> Iterator[str]:
    resolved = os.path.realpath(folder)
    if resolved in ancestors:  # a link to an enclosing folder
        return
    with os.scandir(folder or "/") as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.name
            elif deep:
                yield from (f"{entry.name}/{file}" for file in _local_files(entry.path, deep, (*ancestors, resolved)))


def exists(address: str | PathLike[str]) -> bool:
    """Return whether the file or folder exists."""
    filesystem, path = locate(address)
    return filesystem.exists(path)


def join(folder: str | PathLike[str], name: str) -> str:
    """Return the address of a file named relative to a folder; the archive part after `::` stays at the end."""
    head, chain, archive = str(folder).partition("::")
    separator = "" if head.endswith(("/", "://")) or not head else "/"
    return f"{head}{separator}{name}{chain}{archive}"


def parent(address: str) -> str:
    """Return the address of the folder that contains a file."""
    head, chain, archive = address.partition("::")
    scheme, mark, path = head.rpartition("://")
    return f"{scheme}{mark}{path.rpartition('/')[0]}{chain}{archive}"


def read_text(address: str | PathLike[str]) -> str | None:
    """Return the content of a text file; None if it does not exist."""
    filesystem, path = locate(address)
    try:
        return filesystem.cat_file(path).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_json(address: str | PathLike[str]) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it does not exist.

    Raises:
        DataError: the file is not JSON, or holds something other than an object.
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
    """Write a text file under a temporary name and rename it; create its folder."""
    filesystem, path = locate(address)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(f"{path}.partial", text.encode("utf-8"))
    filesystem.mv(f"{path}.partial", path)
