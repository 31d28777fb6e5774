"""Typesetting of words with pixel-exact bounds."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw

from imtok.data.fonts import Typeface
from imtok.data.sample import Box

Ink = tuple[int, int, int, int]
"""Left, top, right, bottom of the pixels that a word covers, relative to the start of its baseline."""

_REFERENCE_SIZE = 64
"""Font size at which words are measured to find the size for a given height."""
_LEADING = 1.25
"""Distance between the baselines of a paragraph, in ems."""
_ASCENT = 0.95
"""Distance from the top of a paragraph to its first baseline, in ems."""


@dataclass(frozen=True)
class SetWord:
    """A typeset word: its baseline starts at `origin`, and `ink` bounds its pixels relative to it."""

    text: str
    face: Typeface
    size: int
    origin: tuple[int, int]
    ink: Ink

    @property
    def box(self) -> Box:
        """The exact bounds of the word's pixels on the canvas."""
        x, y = self.origin
        left, top, right, bottom = self.ink
        return (float(x + left), float(y + top), float(x + right), float(y + bottom))

    def moved(self, x: int, y: int) -> "SetWord":
        """Return the word shifted by (x, y) pixels."""
        return replace(self, origin=(self.origin[0] + x, self.origin[1] + y))

    def draw(self, canvas: Image.Image, fill: tuple[int, ...]) -> None:
        """Draw the word on a canvas."""
        ImageDraw.Draw(canvas).text(self.origin, self.text, fill=fill, font=self.face.font(self.size), anchor="ls")


def bounds(words: list[SetWord]) -> Box:
    """Return the smallest box around all words."""
    left, top, right, bottom = zip(*(word.box for word in words), strict=True)
    return min(left), min(top), max(right), max(bottom)


def set_rows(
    face: Typeface, rows: list[list[str]], height: float, spacing: float = 0.4, centred: bool = True
) -> list[SetWord]:
    """Typeset rows of words as on a sign, with the top left corner at (0, 0).

    Args:
        face: typeface of all words.
        rows: the words, top to bottom and left to right.
        height: height in pixels of the least tall word of each row.
        spacing: space between rows, as a multiple of `height`.
        centred: centre rows horizontally; otherwise, align them on the left.
    """
    placed: list[list[SetWord]] = []
    top = 0
    for row in rows:
        shortest = min(
            bottom - top for _, top, _, bottom in (_measure_ink(face, _REFERENCE_SIZE, text) for text in row)
        )
        size = math.ceil(height * _REFERENCE_SIZE / shortest)
        inks = [_measure_ink(face, size, text) for text in row]
        baseline = top - min(ink[1] for ink in inks)
        left = 0
        words = []
        for text, ink in zip(row, inks, strict=True):
            words.append(SetWord(text, face, size, (left - ink[0], baseline), ink))
            left += ink[2] - ink[0] + math.ceil(_measure_advance(face, size, " "))
        placed.append(words)
        top = math.ceil(bounds(words)[3] + spacing * height)
    width = max(bounds(row)[2] for row in placed)
    shifts = [round((width - bounds(row)[2]) / 2) if centred else 0 for row in placed]
    return [word.moved(shift, 0) for row, shift in zip(placed, shifts, strict=True) for word in row]


def largest_size(face: Typeface, text: str, width: float, height: float) -> int:
    """Return the largest font size at which a paragraph fits into a box; 0 if none does."""

    def needed_height(size: int) -> float:
        lines = _wrap(face, text, size, width)
        return len(lines) * size * _LEADING if lines else math.inf

    return bisect_right(range(int(height)), height, lo=1, key=needed_height) - 1


def set_paragraph(face: Typeface, text: str, size: int, width: float) -> list[SetWord]:
    """Typeset a paragraph wrapped to `width` pixels, with the top left corner at (0, 0)."""
    words = []
    for number, line in enumerate(_wrap(face, text, size, width)):
        baseline = round((number * _LEADING + _ASCENT) * size)
        for left, word in line:
            words.append(SetWord(word, face, size, (round(left), baseline), _measure_ink(face, size, word)))
    return words


def _wrap(face: Typeface, text: str, size: int, width: float) -> list[list[tuple[float, str]]]:
    """Return lines of (left edge, word) pairs; no lines at all if a word is wider than a line."""
    lines: list[list[tuple[float, str]]] = [[]]
    left = 0.0
    for word in text.split():
        advance = _measure_advance(face, size, word)
        if advance > width:
            return []
        if left + advance > width:
            lines.append([])
            left = 0.0
        lines[-1].append((left, word))
        left += advance + _measure_advance(face, size, " ")
    return lines


@lru_cache(maxsize=65536)
def _measure_advance(face: Typeface, size: int, text: str) -> float:
    return face.font(size).getlength(text)


@lru_cache(maxsize=65536)
def _measure_ink(face: Typeface, size: int, text: str) -> Ink:
    # Pillow's text box includes the side bearings; that of the mask bounds only the pixels
    mask, (left, top) = face.font(size).getmask2(text, mode="L", anchor="ls")
    x0, y0, x1, y1 = mask.getbbox()
    return (left + x0, top + y0, left + x1, top + y1)
