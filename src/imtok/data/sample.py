"""One picture and what is known about it: the schema that lies on disk and travels through the data code."""

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
    """A picture that is refused; the message names its file and the reason."""


LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Order of a face's five points; left and right as seen in the picture, not by the person."""


@dataclass(frozen=True, kw_only=True)
class TextRegion:
    """A word (or, before splitting, a line) of text.

    Attributes:
        box: the upright rectangle around it.
        text: what it says; empty when only its place is known.
        quad: four corners clockwise from the text's own top left, for rotated text.
        score: confidence in [0, 1]; 1 for exact annotations.
        ratio: its size as TokBench's files state it; its box is then cropped without a margin. Shards do not keep it.
    """

    box: Box
    text: str = ""
    quad: tuple[Point, ...] | None = None
    score: float = 1.0
    ratio: float | None = None

    @property
    def height(self) -> float:
        """Height of the letters in pixels, along the quad's left side where there is one."""
        if self.quad is None:
            return self.box[3] - self.box[1]
        return math.dist(self.quad[0], self.quad[3])


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face: box and ratio as in `TextRegion`, and five (x, y) points in the order of `LANDMARKS`, or none."""

    box: Box
    landmarks: tuple[Point, ...] | None = None
    score: float = 1.0
    ratio: float | None = None

    @property
    def can_be_aligned(self) -> bool:
        """Whether there are landmarks that say where the face looks; some tables write (0, 0) for unknown ones."""
        return self.landmarks is not None and len(set(self.landmarks)) > 1

    def landmark_array(self) -> Float[np.ndarray, "5 2"]:
        """The points as an array.

        Raises:
            ValueError: the face has no landmarks.
        """
        if self.landmarks is None:
            raise ValueError("this face has a box but no landmarks")
        return np.asarray(self.landmarks, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture as it stands on disk (encoded bytes) with its annotations, all in its own pixels.

    `width` and `height` are those of the upright picture (EXIF rotation applied), the frame in which all boxes live.
    `words` and `faces` are None when nobody has looked for them, and an empty list when there are none.
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
    """A random-access sequence of samples; reading a bad picture raises PictureError and the others stay readable.

    Threads may share it: rows are read one at a time, since readers keep caches and open files.

    It is no `Sequence[Sample]`: a type checker at run time would read one of its pictures at every call.
    """

    _reading = threading.RLock()
    """One for all sources: so it is no part of their state, and a source may read from another."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The Sample of one row, 0 <= index < len(self)."""

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
        """Every row's Sample, without image bytes where they can be spared; of a bad picture, an empty one."""
        for index in range(len(self)):
            try:
                yield self[index]
            except PictureError:  # it will be named when its turn comes
                yield Sample(image=b"", path="", width=0, height=0)


class InMemoryDataset(Dataset):
    """Pictures that are in memory already."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> Sample:
        return self._samples[index]


def clip_box(box: Iterable[SupportsFloat], width: int, height: int) -> Box | None:
    """The part of a box that lies inside the picture, or None when nothing is left of it.

    Raises:
        DataError: not four finite numbers.
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
"""The Parquet columns. `image` has the shape that Hugging Face datasets decodes as a picture by itself."""
