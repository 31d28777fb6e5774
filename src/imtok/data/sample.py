"""A picture and its annotations: the schema on disk and the types used throughout the data code."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import SupportsFloat, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from imtok.config import InputError

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels; x1 and y1 are exclusive edges, so the width is x1 - x0."""
Point = tuple[float, float]


class DataError(InputError, ValueError):
    """Data that cannot be read or used; the message names the file (and row) and the reason in one line."""


class PictureError(DataError):
    """A picture that is rejected; the message names its file and the reason."""


LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Order of a face's five landmarks; left and right as seen in the picture, not by the person."""


@dataclass(frozen=True, kw_only=True)
class TextRegion:
    """A word (or, before splitting, a line) of text.

    Attributes:
        box: axis-aligned bounding box.
        text: the text; empty if only its position is known.
        quad: four corners of rotated text, clockwise from the top left in reading direction.
        score: confidence in [0, 1]; 1 for exact annotations.
        ratio: size as given in TokBench's files; if set, the box is cropped without a margin. Not stored in shards.
    """

    box: Box
    text: str = ""
    quad: tuple[Point, ...] | None = None
    score: float = 1.0
    ratio: float | None = None

    @property
    def height(self) -> float:
        """Height of the text in pixels: the quad's left side, or the box's height without a quad."""
        if self.quad is None:
            return self.box[3] - self.box[1]
        return math.dist(self.quad[0], self.quad[3])


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face: box, score and ratio as in `TextRegion`; five (x, y) landmarks in the order of `LANDMARKS`, or None."""

    box: Box
    landmarks: tuple[Point, ...] | None = None
    score: float = 1.0
    ratio: float | None = None

    @property
    def can_be_aligned(self) -> bool:
        """Whether the face has distinct landmarks to align it by; some tables write (0, 0) for unknown ones."""
        return self.landmarks is not None and len(set(self.landmarks)) > 1

    def landmark_array(self) -> Float[np.ndarray, "5 2"]:
        """Return the landmarks as an array.

        Raises:
            ValueError: the face has no landmarks.
        """
        if self.landmarks is None:
            raise ValueError("this face has a box but no landmarks")
        return np.asarray(self.landmarks, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture as encoded bytes, with its annotations in pixel coordinates.

    `width` and `height` are those of the upright picture (EXIF rotation applied), to which all coordinates refer.
    `words` and `faces` are None if not annotated, and an empty list if the picture has none.
    """

    image: bytes
    path: str
    width: int
    height: int
    words: list[TextRegion] | None = None
    faces: list[Face] | None = None
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    source: str | None = None
    cluster: str | None = None


class Dataset(ABC):
    """A random-access sequence of samples; a bad picture raises PictureError when read, and the others stay readable.

    Threads may share a dataset: rows are read one at a time, since readers keep caches and open files.

    It does not derive from `Sequence[Sample]`, because run-time type checkers would then read a picture at every call.
    """

    _reading = threading.RLock()
    """A single lock for all datasets: it is not part of their pickled state, and a dataset may read from another."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read the Sample of one row, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        with self._reading:
            return self.read(index % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def annotations(self) -> Iterator[Sample]:
        """Yield every row's Sample, without image bytes where that saves reading; an empty Sample for a bad picture."""
        for index in range(len(self)):
            try:
                yield self[index]
            except PictureError:  # reported when the picture itself is read
                yield Sample(image=b"", path="", width=0, height=0)


class InMemoryDataset(Dataset):
    """A dataset of samples in memory."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> Sample:
        return self._samples[index]


def clip_box(box: Iterable[SupportsFloat], width: int, height: int) -> Box | None:
    """Return the part of a box that lies inside the picture, or None if there is none.

    Raises:
        DataError: a coordinate is not finite.
        ValueError: there are not four coordinates.
    """
    x0, y0, x1, y1 = values = [float(value) for value in box]
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"box {values} is not finite")
    x0, x1 = max(x0, 0.0), min(x1, float(width))
    y0, y1 = max(y0, 0.0), min(y1, float(height))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


_BOX = pa.list_(pa.float32(), 4)
_POINTS = pa.list_(pa.list_(pa.float32(), 2))
_WORD = pa.struct([("box", _BOX), ("quad", _POINTS), ("text", pa.string()), ("score", pa.float32())])
_FACE = pa.struct([("box", _BOX), ("landmarks", _POINTS), ("score", pa.float32())])
SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("words", pa.list_(_WORD)),
        ("faces", pa.list_(_FACE)),
        ("captions", pa.list_(pa.string())),
        ("label", pa.string()),
        ("source", pa.string()),
        ("cluster", pa.string()),
    ]
)
"""The Parquet columns. `image` has the structure that Hugging Face datasets automatically decodes as an image."""
