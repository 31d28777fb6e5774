"""Pictures to the square that a tokenizer is judged at, and back: TokBench's preparation."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from imtok.data.pictures import Picture, centre_crop


@dataclass(frozen=True)
class SquareFit:
    """Resize the longer side to `size` pixels, pad to a square; after the tokenizer cut, and resize to its own size.

    The padding is black and lies on both sides alike; the filter is LANCZOS both ways.
    """

    size: int
    rule = "LANCZOS, padded black to a centred square"

    def prepare(self, picture: Picture) -> Picture:
        """The picture as it enters the tokenizer."""
        top, left, height, width = self._place(picture)
        square = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        square[top : top + height, left : left + width] = _resize(picture, width, height)
        return square

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """The part of a prepared or reconstructed square that shows the picture, without padding."""
        top, left, height, width = self._place(original)
        return prepared[top : top + height, left : left + width]

    def restore(self, drawn: Picture, original: Picture) -> Picture:
        """The reconstruction at the original's size."""
        height, width = original.shape[:2]
        return _resize(self.content(drawn, original), width, height)

    def _place(self, original: Picture) -> tuple[int, int, int, int]:
        """Where the picture lies in the square: top, left, height and width, rounded up as TokBench does."""
        longer = max(original.shape[:2])
        height, width = (-(-side * self.size // longer) for side in original.shape[:2])
        return (self.size - height) // 2, (self.size - width) // 2, height, width


class OwnSize:
    """Pictures as they are; the tokenizer pads them to its grid and cuts them back."""

    rule = "each picture at its own size"

    def prepare(self, picture: Picture) -> Picture:
        """The picture itself."""
        return picture

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """All of it."""
        return prepared

    def restore(self, drawn: Picture, original: Picture) -> Picture:
        """The reconstruction itself."""
        return drawn


@dataclass(frozen=True)
class CentreCrop:
    """The largest centred square, resized: how sets to be compared with generated pictures are prepared."""

    size: int
    rule = "centred square, bicubic with antialiasing"

    def prepare(self, picture: Picture) -> Picture:
        """The square."""
        return centre_crop(picture, self.size)

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """All of it."""
        return prepared


def _resize(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
