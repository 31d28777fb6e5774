"""Pictures to the square that a tokenizer is judged at, and back: TokBench's preparation."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from imtok.data.pictures import Picture, centre_crop


@dataclass(frozen=True)
class SquareFit:
    """Pad to a square, resize to `size` pixels; after the tokenizer cut, and resize to the picture's own size.

    The padding is black and lies right and below (where TokBench pads is not known); the filter is LANCZOS both ways.
    """

    size: int
    rule = "padded black to a square, LANCZOS"

    def prepare(self, picture: Picture) -> Picture:
        """The picture as it enters the tokenizer."""
        height, width = picture.shape[:2]
        square = np.zeros((max(height, width), max(height, width), 3), dtype=np.uint8)
        square[:height, :width] = picture
        return _resize(square, self.size, self.size)

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """The part of a prepared or reconstructed square that shows the picture, without padding."""
        height, width = original.shape[:2]
        scale = self.size / max(height, width)
        return prepared[: max(1, round(height * scale)), : max(1, round(width * scale))]

    def restore(self, drawn: Picture, original: Picture) -> Picture:
        """The reconstruction at the original's size."""
        height, width = original.shape[:2]
        return _resize(self.content(drawn, original), width, height)


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
