"""Plain signs for training generators: one upright word on a single colour, almost fully described by the prompt."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from imtok.data.fonts import find_typefaces
from imtok.data.grounds import COLOURS, Colour, draw_colour, with_article
from imtok.data.pictures import encode
from imtok.data.sample import Box, DataError, Dataset, Sample, TextRegion
from imtok.data.typesetting import bounds, set_rows
from imtok.data.vocabulary import WORD_LABELS, draw_words, in_split

PlainSplit = Literal["train", "combinations", "words"]
"""`combinations`: pairs of a word and a colour that `train` lacks; `words`: words that `train` lacks. A fifth of each
is held out, chosen by hash. The word of `EXAMPLE`, which the hash would hold out, belongs to `train` alone."""

FAMILIES = ("Anton", "Bebas Neue", "Fjalla One", "Oswald")
"""Narrow typefaces, in which a word that spans the picture is tall."""
STEADY_FAMILY = "Oswald"
"""The family of `FAMILIES` that text recognizers read best; Anton's OPEN, for example, is read as OPEH."""
LONGEST_WORD = 5
"""Maximum number of letters of a word; with more, they become too small to read."""
SMALLEST = 32
"""Minimum side of a picture in pixels."""
EXAMPLE = ("shop", "OPEN")
"""The label and the word of the prompt that the documentation uses as an example."""
_EXAMPLE_EVERY = 64
_ATTEMPTS = 1000
_BOLD = (None, 700)
_WIDTH, _HEIGHT = 0.9, (0.25, 0.4)
"""Maximum width and range of heights of a word, as fractions of the picture's side; long words are less high."""
_STEADY_HEIGHT = 0.33
_JITTER = 0.03
_INKS = (Colour("white", (246, 246, 242)), Colour("black", (24, 24, 28)))


class PlainSigns(Dataset):
    """Signs such as 'a red sign that says OPEN', each made on demand from (seed, index) alone.

    Letters are white or black, whichever contrasts more with the sign. The label is the kind of the word.

    Args:
        count: length of the sequence.
        seed: random seed of the pictures.
        size: side of the square pictures in pixels.
        split: which words and combinations of word and colour to use; see `PlainSplit`.
        fonts: folder of TrueType or OpenType files to use instead of the installed narrow typefaces.
        labels: kinds of words to use; None uses all.
        colours: names of the signs' colours to use; None uses all.
        steady: centre every word, in a single typeface and at a fixed height (less where the word would be too wide),
            so that the caption determines nearly everything but the exact shade.

    Raises:
        DataError: the pictures are too small for letters, a label or colour is unknown, the folder has no fonts, or the
            typefaces lack the letters.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        size: int = 128,
        split: PlainSplit = "train",
        fonts: str | None = None,
        labels: Sequence[str] | None = None,
        colours: Sequence[str] | None = None,
        steady: bool = False,
    ) -> None:
        if size < SMALLEST:
            raise DataError(f"signs of {size} pixels are too small for letters; {SMALLEST} is the least")
        if unknown := set(labels or ()) - set(WORD_LABELS):
            raise DataError(f"no kind of words is called {min(unknown)!r}; there are {', '.join(WORD_LABELS)}")
        if unknown := set(colours or ()) - set(COLOURS):
            raise DataError(f"no sign is {min(unknown)!r}; there are {', '.join(COLOURS)}")
        self.colours = frozenset(colours or COLOURS)
        self._count, self.seed, self.size, self.labels = count, seed, size, tuple(labels or WORD_LABELS)
        self._heights, self._jitter = ((_STEADY_HEIGHT, _STEADY_HEIGHT), 0.0) if steady else (_HEIGHT, _JITTER)
        self.split: PlainSplit = split
        self._shows_example = split == "train" and EXAMPLE[0] in self.labels
        faces = find_typefaces(fonts, "all")
        families = (STEADY_FAMILY,) if steady else FAMILIES
        narrow = [face for face in faces if face.family in families and face.weight in _BOLD]
        self.typefaces = faces if fonts else narrow or find_typefaces(None, "train")

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        label, text, board = self._choose_content(rng, example=self._shows_example and index % _EXAMPLE_EVERY == 0)
        ink = max(_INKS, key=board.contrast)
        canvas = Image.new("RGB", (self.size, self.size), board.rgb)
        box = self._draw(rng, canvas, text, ink)
        return Sample(
            image=encode(np.asarray(canvas)),
            path=f"{label}/{index:08d}.png",
            width=self.size,
            height=self.size,
            words=[TextRegion(box=box, text=text)],
            faces=[],
            captions=[prompt(board.name, text)],
            label=label,
            source="plain signs",
            cluster=f"plain/{self.split}/{self.seed}/{index}",
        )

    def _choose_content(self, rng: np.random.Generator, example: bool) -> tuple[str, str, Colour]:
        """Return a random label, word and colour of the split, such that some typeface has the word's letters."""
        for _ in range(_ATTEMPTS):
            label, (word,) = draw_words(rng, 1, "test" if self.split == "words" else "train", self.labels)
            if word.upper() == EXAMPLE[1]:
                continue
            label, text = EXAMPLE if example else (label, word.upper())
            board = draw_colour(rng)
            kept = in_split(f"{board.name} {text}", "test" if self.split == "combinations" else "train")
            fits = len(text) <= LONGEST_WORD and any(face.draws(text) for face in self.typefaces)
            if fits and board.name in self.colours and (kept or self.split == "words"):
                return label, text, board
        raise DataError("plain signs: the typefaces lack the letters of all words")

    def _draw(self, rng: np.random.Generator, canvas: Image.Image, text: str, ink: Colour) -> Box:
        """Draw the word near the centre, with a height in `_heights` (less if it would be too wide); return its box."""
        while True:
            face = self.typefaces[rng.integers(len(self.typefaces))]
            if face.draws(text):
                break
        height = self.size * rng.uniform(*self._heights)
        (word,) = set_rows(face, [[text]], height)
        width = bounds([word])[2]
        if width > self.size * _WIDTH:
            (word,) = set_rows(face, [[text]], height * self.size * _WIDTH / width - 1)
        left, top, right, bottom = bounds([word])
        dx, dy = rng.uniform(-self._jitter, self._jitter, 2) * self.size
        placed = word.moved(round((self.size - right - left) / 2 + dx), round((self.size - bottom - top) / 2 + dy))
        placed.draw(canvas, ink.rgb)
        return placed.box


def prompt(colour: str, text: str) -> str:
    """Return the prompt of a sign, such as 'a red sign that says OPEN'."""
    return f"{with_article(colour)} sign that says {text}"
