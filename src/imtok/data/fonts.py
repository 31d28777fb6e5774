"""Typefaces for rendered text: from installed `fontpkg-*` packages, a user's folder, or Pillow's built-in font."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from imtok.data.sample import DataError
from imtok.data.vocabulary import Split, in_split

_WEIGHTS = (400, 700)
"""The weights used of families with several: regular and bold, the most common on signs."""
FONT_SUFFIXES = (".ttf", ".otf")
_NO_GLYPH = "\ue000"
"""A private-use code point without a glyph in text fonts; it renders as the font's missing-glyph symbol."""


@dataclass(frozen=True, kw_only=True)
class Typeface:
    """One style of a typeface.

    Attributes:
        family: name of the family, which belongs to one split as a whole: no style of a held-out one is in training.
        path: font file; None for the font built into Pillow.
        weight: value of the weight axis of a variable font; None for other fonts.
    """

    family: str
    path: str | None
    weight: int | None = None

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        """Return the typeface as a font of the given size in pixels per em."""
        return _load(self, size)

    @property
    def has_lower_case(self) -> bool:
        """False for typefaces whose lower-case letters look like capitals; text set in them reads as upper case."""
        return _glyph_bitmaps(self)["a"] != _glyph_bitmaps(self)["A"]

    def draws(self, text: str) -> bool:
        """Return whether the typeface has a glyph for every character of the text except spaces."""
        bitmaps = _glyph_bitmaps(self)
        missing = bitmaps[_NO_GLYPH]
        return all(bitmaps.setdefault(char, _glyph_bitmap(self, char)) != missing for char in text if char != " ")


def find_typefaces(folder: str | None = None, split: Split = "train") -> list[Typeface]:
    """Return the sorted typefaces of one split, which is determined by a hash of the family's name.

    Args:
        folder: folder of TrueType and OpenType files to use instead of the installed packages.
        split: "train", "test", or "all". A single family belongs to every split.

    Raises:
        DataError: the folder has no fonts, or none in the split.
    """
    faces = sorted(_in_folder(folder) if folder else _installed(), key=_order)
    if folder and not faces:
        raise DataError(f"{folder}: no .ttf or .otf files there")
    if len({face.family for face in faces}) > 1:
        faces = [face for face in faces if in_split(face.family, split)]
    if folder and not faces:
        raise DataError(
            f"{folder}: none of its families falls into the split {split}; add families, or use another split"
        )
    return faces or [Typeface(family="Aileron", path=None)]


def _order(face: Typeface) -> tuple[str, str, int]:
    return face.family, Path(face.path or "").name, face.weight or 0


def _installed() -> Iterator[Typeface]:
    """Yield regular and bold of each installed fontpkg family, read from its metadata without importing it."""
    for entry in entry_points(group="fontpkg.family"):
        assert entry.dist is not None
        root = Path(str(entry.dist.locate_file(entry.value.replace(".", "/"))))
        metadata = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
        for file in metadata["files"]:
            path = str(root / file["path"])
            if file["variable"]:
                yield from (Typeface(family=metadata["family"], path=path, weight=weight) for weight in _WEIGHTS)
            elif file["weight"] in _WEIGHTS or len(metadata["files"]) == 1:
                yield Typeface(family=metadata["family"], path=path)


def _in_folder(folder: str) -> Iterator[Typeface]:
    for path in Path(folder).rglob("*"):
        if path.suffix.lower() in FONT_SUFFIXES:
            try:
                family = str(ImageFont.truetype(path).getname()[0])
            except OSError as error:
                raise DataError(f"{path}: no typeface that can be read ({error})") from None
            yield Typeface(family=family, path=str(path))


@lru_cache(maxsize=512)
def _load(face: Typeface, size: int) -> ImageFont.FreeTypeFont:
    if face.path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    font = ImageFont.truetype(face.path, size, layout_engine=ImageFont.Layout.BASIC)
    if face.weight is not None:
        axes = font.get_variation_axes()
        is_weight = [axis.get("name") == b"Weight" for axis in axes]
        values = [face.weight if weight else axis["default"] or 0 for weight, axis in zip(is_weight, axes, strict=True)]
        font.set_variation_by_axes([float(value) for value in values])
    return font


@cache
def _glyph_bitmaps(face: Typeface) -> dict[str, bytes]:
    return {letter: _glyph_bitmap(face, letter) for letter in ("a", "A", _NO_GLYPH)}


def _glyph_bitmap(face: Typeface, letter: str) -> bytes:
    canvas = Image.new("L", (48, 48))
    ImageDraw.Draw(canvas).text((8, 36), letter, fill=255, font=face.font(24), anchor="ls")
    return canvas.tobytes()
