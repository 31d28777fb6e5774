"""Are words still legible? A judge that had no part in training reads them before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from imtok.data.sample import TextRegion
from imtok.pretrained import Reading

Picture = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class TextJudge(Protocol):
    """Reads crops of words."""

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        """What each uint8 RGB crop says."""
        ...


@dataclass(frozen=True)
class ReadWord:
    """One word: what it says, and what the judge read on the original and on the reconstruction."""

    text: str
    original: str
    reconstruction: str


def read_words(
    judge: TextJudge, original: Picture, reconstruction: Picture, words: Sequence[TextRegion]
) -> list[ReadWord]:
    """Read every word of a picture twice.

    Args:
        judge: of the role `text_judge`.
        original: as it was.
        reconstruction: of the same size.
        words: with text; boxes in pixels.
    """
    crops = [crop_word(picture, word) for picture in (original, reconstruction) for word in words]
    texts = [reading.text for reading in judge.read(crops)] if crops else []
    return [
        ReadWord(word.text, before, after)
        for word, before, after in zip(words, texts[: len(words)], texts[len(words) :], strict=True)
    ]


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


def same_letters(a: str, b: str) -> bool:
    """Whether two words agree in their letters and digits, whatever their case and punctuation."""
    return _letters(a) == _letters(b)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
