"""Conversion of table rows to samples, and lookup of table rows by picture path."""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar

from imtok.data.pictures import measure
from imtok.data.sample import DataError, Face, PictureError, Sample, TextRegion, clip_box

Value = TypeVar("Value")


def make_sample(image: bytes, path: str, row: Mapping[str, Any]) -> Sample:
    """Make a Sample from encoded bytes and a table row with the following columns; all others are ignored.

    `words`: objects with `box` and optionally `text`, `quad`, `score`, `ratio`; `faces`: `box` and optionally
    `landmarks`, `score` (or `conf`), `ratio`; `captions`: a list, or `caption`: a string; `label` (or `class`),
    `source`, `cluster`. Boxes are clipped to the picture; those entirely outside are dropped. What is not valid Unicode
    in a name (bytes of another encoding) or a text (half a surrogate pair) is escaped with backslashes. `words` and
    `faces` columns that are not lists of objects are assumed to have another meaning, and ignored.

    Raises:
        PictureError: the picture's header is unreadable or contradicts `size`, or a word or face is malformed.
    """
    path = as_unicode(path)
    width, height = measure(image, path)
    try:
        size, words, faces = (_loads(row.get(column)) for column in ("size", "words", "faces"))
        words, faces = (regions if _are_objects(regions) else None for regions in (words, faces))
        if isinstance(size, list | tuple) and [int(side) for side in size] != [width, height]:
            raise ValueError(f"made for {size}, but the upright picture is {[width, height]}")
        label = row.get("label", row.get("class"))
        return Sample(
            image=image,
            path=path,
            width=width,
            height=height,
            words=None if words is None else list(_words(words, width, height)),
            faces=None if faces is None else list(_faces(faces, width, height)),
            captions=listed_captions(row),
            label=None if label in (None, "") else as_unicode(label),
            source=as_unicode(row["source"]) if row.get("source") else None,
            cluster=as_unicode(row["cluster"]) if row.get("cluster") else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PictureError(f"{path}: malformed annotation ({reason})") from None


def listed_captions(row: Mapping[str, Any]) -> list[str]:
    """Return the captions of a table row: a list (or its JSON text) in `captions`, or a single one in either column."""
    captions = row.get("captions") or row.get("caption") or []
    if isinstance(captions, str):
        with contextlib.suppress(ValueError, RecursionError):  # a caption that begins with a bracket, but is not JSON
            captions = _loads(captions)
    items = captions if isinstance(captions, list | tuple) else [captions]
    return [as_unicode(caption) for caption in items if caption is not None]


class PathLookup(Generic[Value]):
    """Values of a table, looked up by picture path.

    A table may name a picture by its path, by a longer path that ends with it, or by the last parts of its path, at
    least the file name.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self._named = defaultdict[str, list[str]](list)
        for name in values:
            self._named[PurePosixPath(name).name].append(name)

    def of(self, path: str) -> Value | None:
        """Return the value of a picture, or None if the table does not list it.

        Raises:
            DataError: several names match the path equally well, and their values differ.
        """
        names = self._named.get(PurePosixPath(path).name, [])
        longer = [name for name in names if f"/{name}".endswith(f"/{path}")]
        shorter = [name for name in names if f"/{path}".endswith(f"/{name}")]
        if not longer:
            return self._values[max(shorter, key=len)] if shorter else None
        least = min(name.count("/") for name in longer)
        first, *others = (name for name in longer if name.count("/") == least)
        for other in others:
            if self._values[other] != self._values[first]:
                raise DataError(f"{path}: is it the table's {first} or {other}? Keep their folders")
        return self._values[first]


def _are_objects(regions: Any) -> bool:
    return isinstance(regions, list) and all(isinstance(region, Mapping) for region in regions)


def _words(words: Any, width: int, height: int) -> Iterator[TextRegion]:
    for word in words:
        if box := clip_box(word["box"], width, height):
            yield TextRegion(
                box=box,
                text=as_unicode(word.get("text") or ""),
                quad=_points(word.get("quad"), 4),
                score=_score(word.get("score")),
                ratio=_ratio(word),
            )


def _faces(faces: Any, width: int, height: int) -> Iterator[Face]:
    for face in faces:
        if box := clip_box(face["box"], width, height):
            score = _score(face.get("score", face.get("conf")))
            yield Face(box=box, landmarks=_points(face.get("landmarks"), 5), score=score, ratio=_ratio(face))


def as_unicode(value: Any) -> str:
    """Return a name or text with backslash escapes for what is not valid Unicode."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _score(value: Any) -> float:
    return 1.0 if value is None else float(value)


def _ratio(region: Mapping[str, Any]) -> float | None:
    return None if region.get("ratio") is None else float(region["ratio"])


def _points(points: Any, count: int) -> tuple[tuple[float, float], ...] | None:
    if points is None:
        return None
    if len(points) != count:
        raise ValueError(f"{len(points)} points, expected {count}")
    pairs = tuple((float(x), float(y)) for x, y in points)
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        raise ValueError(f"points {points} are not finite")
    return pairs


def _loads(value: Any) -> Any:
    """Parse the JSON text of a list in a CSV cell; return other values unchanged, and None for an empty cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return json.loads(value)
    return value if value != "" else None
