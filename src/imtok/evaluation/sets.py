"""Sets of pictures, read in batches of one size and never held as a whole."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from imtok.config import ConfigError
from imtok.data.pictures import Picture, PictureError, decode
from imtok.data.readers import open_source
from imtok.data.sample import Sample, Source
from imtok.evaluation.fit import CentreCrop, OwnSize, SquareFit
from imtok.evaluation.meters import Shown

MIN_SIDE = 16
"""Smaller pictures are left out: SSIM's window and VGG16's last layer need so much."""
_BATCH, _BATCH_PIXELS = 16, 2**20
"""At most so many pictures and pixels are held together."""


def open_sets(data: Sequence[str | PathLike[str]] | Mapping[str, Source]) -> Mapping[str, Source]:
    """Each set by the last part of its place, or by all of it where that is not unique."""
    if isinstance(data, Mapping):
        return data
    data = [str(place) for place in data]
    short = [Path(place).name or place for place in data]
    names = [name if short.count(name) == 1 else place for name, place in zip(short, data, strict=True)]
    return {name: open_source(place) for name, place in zip(names, data, strict=True)}


class Pictures:
    """The readable pictures of a set in batches of one size, with their resampling groups."""

    def __init__(self, name: str, source: Source, fit: CentreCrop | OwnSize | SquareFit, count: int | None) -> None:
        total = len(source) if count is None else min(count, len(source))
        self._rows = [index * len(source) // total for index in range(total)]
        self._name, self._source, self._fit = name, source, fit
        self._groups: dict[str, int] = {}
        self._hash, self._paths_hash = hashlib.sha256(), hashlib.sha256()
        self.total, self.seen, self.unreadable = total, 0, 0

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self._groups)

    def sha256(self) -> str:
        """Of the encoded pictures that were seen, in their order."""
        return self._hash.hexdigest()

    def paths_sha256(self) -> str:
        """Of their paths, a line each."""
        return self._paths_hash.hexdigest()

    def evenly_spread(self, number: int) -> set[int]:
        """Rows of at most so many of the pictures."""
        number = min(number, self.total)
        return {self._rows[index * self.total // number] for index in range(number)}

    def prepared(self) -> Iterator[Picture]:
        """The readable pictures one by one as they enter a tokenizer, without being counted as seen."""
        for row in self._rows:
            with suppress(PictureError):
                yield self._read(row)[2]

    def _read(self, row: int) -> tuple[Sample, Picture, Picture, Picture]:
        """A sample, its picture, that as it enters the tokenizer, and of that the content.

        Raises:
            PictureError: broken, or too small.
        """
        sample = self._source[row]
        original = decode(sample.image, sample.path)
        prepared = self._fit.prepare(original)
        content = self._fit.content(prepared, original)
        if min(content.shape[:2]) < MIN_SIDE:
            raise PictureError(f"{sample.path}: less than {MIN_SIDE} pixels high or wide")
        return sample, original, prepared, content

    def batches(self) -> Iterator[list[Shown]]:
        """Consecutive pictures of one prepared size.

        Raises:
            ConfigError: not one picture could be read.
        """
        batch: list[Shown] = []
        most = _BATCH
        for row in self._rows:
            try:
                sample, original, prepared, content = self._read(row)
            except PictureError as error:
                tqdm.write(f"left out: {error}")
                self.unreadable += 1
                continue
            self._hash.update(sample.image)
            self._paths_hash.update(f"{sample.path}\n".encode())
            self.seen += 1
            group = self._groups.setdefault(sample.cluster or sample.path, len(self._groups))
            if batch and (len(batch) == most or batch[0].prepared.shape != prepared.shape):
                yield batch
                batch = []
            batch.append(
                Shown(row=row, sample=sample, group=group, original=original, prepared=prepared, content=content)
            )
            most = max(1, min(_BATCH, _BATCH_PIXELS // prepared[..., 0].size))
        if not self.seen:
            raise ConfigError(f"{self._name}: none of the pictures can be read")
        yield batch
