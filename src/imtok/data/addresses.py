"""Places of files: a local path or any fsspec address (`memory://x`, `zip://folder::pictures.zip`, `s3://bucket/x`)."""

from os import PathLike

import fsspec


def list_files(folder: str | PathLike[str], deep: bool = False) -> list[str]:
    """Names of the files in a folder, relative to it and sorted; with `deep` those in sub-folders too."""
    filesystem, root = fsspec.url_to_fs(str(folder))
    root = root.rstrip("/")
    found = filesystem.find(root, maxdepth=None if deep else 1)
    return sorted(file[len(root) :].lstrip("/") for file in found)


def exists(address: str | PathLike[str]) -> bool:
    """Whether there is such a file or folder."""
    filesystem, place = fsspec.url_to_fs(str(address))
    return filesystem.exists(place)


def join(folder: str | PathLike[str], name: str) -> str:
    """The address of a file named relative to its folder; an archive's own address stays behind its `::`."""
    head, chain, archive = str(folder).partition("::")
    separator = "" if head.endswith(("/", "://")) or not head else "/"
    return f"{head}{separator}{name}{chain}{archive}"


def parent(address: str) -> str:
    """The folder of a file, as an address."""
    head, chain, archive = address.partition("::")
    return f"{head.rpartition('/')[0]}{chain}{archive}"
