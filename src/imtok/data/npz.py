"""Pictures in one .npz file, in the format of ADM's evaluation: `arr_0`, uint8, (pictures, height, width, 3)."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from imtok.config import first_line
from imtok.data.addresses import open_file
from imtok.data.pictures import MAX_PIXELS, Picture, encode
from imtok.data.sample import DataError, Dataset, Sample

PICTURES = "arr_0"


class NpzDataset(Dataset):
    """The pictures of an .npz file, compressed or not, read from the file one at a time; nothing is unpickled.

    Read the pictures in ascending order: seeking backwards restarts at the beginning of the file, which is slow.

    Raises:
        DataError: the file does not exist or holds no pictures (one-line message).
    """

    def __init__(self, path: str) -> None:
        self._path, self._open = path, None
        try:
            shape, dtype, c_order, size = self._seek(None)
        except (EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: no .npz file with pictures ({_reason(error)})") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not c_order or min(shape) < 1:
            raise DataError(f"{path}: its {PICTURES} is {dtype} {shape}; uint8 (pictures, height, width, 3) is wanted")
        self._count, self._height, self._width, _ = shape
        if self._height * self._width > MAX_PIXELS:
            raise DataError(f"{path}: {self._width}x{self._height} is more than {MAX_PIXELS} pixels")
        if size < self._start + np.prod(shape, dtype=np.int64):
            raise DataError(f"{path}: truncated; {shape[0]} pictures are announced")

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Sample:
        size = self._height * self._width * 3
        try:
            self._seek(self._start + index * size)
            pixels = self._open[1].read(size)  # pyright: ignore[reportOptionalSubscript]
            picture = np.frombuffer(pixels, np.uint8).reshape(self._height, self._width, 3)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self._path}: broken at picture {index} ({_reason(error)})") from None
        name = f"{Path(self._path).stem}/{index:06d}"
        return Sample(image=encode(picture, "PPM"), path=name, width=self._width, height=self._height)

    def _seek(self, offset: int | None) -> Any:
        """Seek to a byte offset in the array's file; for None, open it and return its header."""
        if self._open is None:
            archive = zipfile.ZipFile(open_file(self._path))
            self._open = archive, archive.open(f"{PICTURES}.npy")
        archive, member = self._open
        if offset is not None:
            return member.seek(offset)
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        self._start = member.tell()
        return shape, dtype, not fortran, archive.getinfo(f"{PICTURES}.npy").file_size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}


def read_arrays(path: str, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Read the named arrays of an .npz file, omitting those it does not hold; nothing is unpickled.

    Raises:
        DataError: the file does not exist, is not an .npz file, or an array holds objects (one-line message).
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file), np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays.files}
    except (AttributeError, OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: no readable .npz file ({_reason(error)})") from None


def holds_pictures(path: str) -> bool:
    """Return whether an .npz file holds pictures, rather than only statistics.

    Raises:
        DataError: the file does not exist or is not an .npz file (one-line message).
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return f"{PICTURES}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no readable .npz file ({_reason(error)})") from None


class NpzWriter:
    """Writes pictures of one size in sequence, then other arrays; a context manager.

    The file is written under a temporary name and renamed when the context exits without an error.

    Args:
        file: the file to write.
        count: number of pictures, which must be known in advance.

    Raises:
        DataError: a picture differs in size from the first, or the number of pictures differs from `count`.
    """

    def __init__(self, file: Path, count: int) -> None:
        self._file, self._count, self._written = file, count, 0
        self._shape: tuple[int, ...] | None = None
        self._temporary = file.with_name(f"{file.name}.partial")
        self._archive = zipfile.ZipFile(self._temporary, "w")
        self._member: Any = None

    def write(self, picture: Picture, path: str) -> None:
        """Append a picture; `path` names it in error messages."""
        if self._shape is None:
            self._shape = picture.shape
            self._member = self._archive.open(f"{PICTURES}.npy", "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *picture.shape)}
            np.lib.format.write_array_header_1_0(self._member, header)
        if picture.shape != self._shape:
            sizes = [f"{width} x {height}" for height, width, _ in (picture.shape, self._shape)]
            raise DataError(f"{path}: has {sizes[0]} pixels, the first picture {sizes[1]}; an .npz file has one size")
        self._member.write(picture.tobytes())
        self._written += 1

    def add(self, name: str, array: Shaped[np.ndarray, "..."]) -> None:
        """Add another array, after all pictures."""
        self._close_pictures()
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)

    def __enter__(self) -> "NpzWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._close_pictures(complete=kind is None)
            self._archive.close()
            if kind is None:
                self._temporary.replace(self._file)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _close_pictures(self, complete: bool = True) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None
        if complete and self._written != self._count:
            raise DataError(f"{self._file}: {self._written} pictures for {self._count}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
