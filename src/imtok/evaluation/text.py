"""Are words still legible? A judge that had no part in training reads them before and after (TokBench's rules)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from imtok.data.pictures import Picture
from imtok.data.sample import TextRegion
from imtok.pretrained import Reading

MIN_CHARACTERS = 2
"""Shorter words are not scored (TokBench)."""


@runtime_checkable
class TextJudge(Protocol):
    """Reads crops of words.

    Attributes:
        name: role/name behind the door.
        sha256: of its weights.
    """

    name: str
    sha256: str

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        """What each uint8 RGB crop says."""
        ...


def read_words(judge: TextJudge, pictures: Sequence[Picture], words: Sequence[Sequence[TextRegion]]) -> list[str]:
    """What the judge reads in each word's box, picture by picture.

    Args:
        judge: of the role `text_judge`.
        pictures: that the boxes belong to, or reconstructions of the same sizes.
        words: of each picture; boxes in pixels.
    """
    crops = [crop_word(picture, word) for picture, inside in zip(pictures, words, strict=True) for word in inside]
    return [reading.text for reading in judge.read(crops)] if crops else []


def crop_word(picture: Picture, word: TextRegion, margin: float = 0.2) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
    """The upright box around a word with some of its surroundings, cut at whole pixels.

    Deviation: TokBench cuts at the box. Our boxes are tight around the letters, and recognizers are trained on looser
    ones.

    Args:
        picture: the whole picture.
        word: its box in pixels.
        margin: on each side, as a share of the box's height.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = word.box
    more = margin * (y1 - y0)
    left, top = min(max(int(x0 - more), 0), width - 1), min(max(int(y0 - more), 0), height - 1)
    return picture[top : max(int(y1 + more), top + 1), left : max(int(x1 + more), left + 1)]


def size_ratio(word: TextRegion, width: int, height: int) -> float:
    """TokBench's size of a word: the longer side of its box per character, as a share of the picture's longer side.

    Args:
        word: with a text.
        width: of the picture.
        height: of the picture.
    """
    x0, y0, x1, y1 = word.box
    return max(x1 - x0, y1 - y0) / (len(word.text) * max(width, height))


def same_letters(a: str, b: str) -> bool:
    """Whether two words agree in their letters and digits, whatever their case and punctuation."""
    return letters(a) == letters(b)


def letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def normalized_edit_similarity(a: str, b: str) -> float:
    """1 minus the edit distance over the longer text's length (T-NED): 1 for equal texts, 0 for nothing in common."""
    longer = max(len(a), len(b))
    return 1.0 if longer == 0 else 1 - edit_distance(a, b) / longer


def edit_distance(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace that makes one text the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, character in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return row[-1]


@dataclass(frozen=True)
class WordReading:
    """One word: what it says, and what the judge read on the original and on a reconstruction."""

    text: str
    original: str
    reconstruction: str

    @property
    def kept(self) -> bool:
        """Read right, to the letter (T-ACC)."""
        return self.reconstruction == self.text

    @property
    def kept_letters(self) -> bool:
        """Read right but for case and punctuation."""
        return same_letters(self.reconstruction, self.text)
