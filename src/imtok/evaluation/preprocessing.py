"""How pictures enter a tokenizer, and come back: at their own size, padded to a square, or cropped to one."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from imtok.config import ConfigError
from imtok.data.pictures import Picture
from imtok.data.sample import Face, Sample, TextRegion
from imtok.data.transforms import centre_crop

FitRule = Literal["pad", "crop"]
"""How a picture of any shape becomes a square."""
Region = TypeVar("Region", TextRegion, Face)


class Preprocessing:
    """A way; what it does not say leaves pictures as they are.

    Attributes:
        rule: the way in words.
    """

    rule: str

    def cut(self, sample: Sample, picture: Picture) -> tuple[Sample, Picture]:
        """What is left of a picture and of what is known of it: everything."""
        return sample, picture

    def prepare(self, picture: Picture) -> Picture:
        """The picture as it enters the tokenizer."""
        return picture

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """The part of a prepared or reconstructed picture that shows the original, without padding."""
        return prepared

    def restore(self, drawn: Picture, original: Picture) -> Picture:
        """The reconstruction at the original's size."""
        return drawn


class OriginalSize(Preprocessing):
    """Pictures as they are; the tokenizer pads them to its grid and cuts them back."""

    rule = "each picture at its own size"


@dataclass(frozen=True)
class PadToSquare(Preprocessing):
    """Resize the longer side to `size` pixels, pad to a square; after the tokenizer cut, and resize to its own size.

    TokBench's preparation, as the scripts of its release do it (such as resize_rec.py): the shorter side is rounded up,
    the padding is black and lies on both sides alike, the filter is LANCZOS both ways.
    """

    size: int
    rule = "LANCZOS, padded black to a centred square"

    def prepare(self, picture: Picture) -> Picture:
        top, left, height, width = self._place(picture)
        square = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        square[top : top + height, left : left + width] = _resize(picture, width, height)
        return square

    def content(self, prepared: Picture, original: Picture) -> Picture:
        top, left, height, width = self._place(original)
        return prepared[top : top + height, left : left + width]

    def restore(self, drawn: Picture, original: Picture) -> Picture:
        height, width = original.shape[:2]
        return _resize(self.content(drawn, original), width, height)

    def _place(self, original: Picture) -> tuple[int, int, int, int]:
        """Where the picture lies in the square: top, left, height and width, rounded up as TokBench does."""
        longer = max(original.shape[:2])
        height, width = (-(-side * self.size // longer) for side in original.shape[:2])
        return (self.size - height) // 2, (self.size - width) // 2, height, width


@dataclass(frozen=True)
class CentreCrop(Preprocessing):
    """The largest centred square, resized to `size` pixels: it takes the place of the original.

    So are prepared ImageNet's pictures for rFID, and those to be compared with generated pictures. InsightTok (appendix
    F.1), FQGAN and TexTok state neither the crop nor its filter. This is ADM's, which the field's scripts have taken
    over: halved while both sides are twice the size or more, then resized until the shorter one has it, then cut.
    """

    size: int
    rule = "ADM's centred square: halved (BOX), then resized (BICUBIC)"

    def cut(self, sample: Sample, picture: Picture) -> tuple[Sample, Picture]:
        """The square, with the words and faces that it shows by the rules of training crops (`Crop.words`, `.faces`).

        A size that TokBench's files state is a share of the picture's longer side, so it grows with the cut.
        """
        height, width = picture.shape[:2]
        crop = centre_crop(width, height, self.size)
        growth = max(height, width) / crop.side
        cut = replace(
            sample,
            width=self.size,
            height=self.size,
            words=None if sample.words is None else _grown(crop.words(sample.words), growth),
            faces=None if sample.faces is None else _grown(crop.faces(sample.faces), growth),
        )
        return cut, self.pixels(picture)

    def pixels(self, picture: Picture) -> Picture:
        """The square."""
        image = Image.fromarray(picture)
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def make_preprocessing(size: int | None, rule: FitRule) -> Preprocessing:
    """How pictures are judged: at so many pixels, or where that is None at their own size.

    Raises:
        ConfigError: a crop without a size.
    """
    if size is None and rule == "crop":
        raise ConfigError("a crop needs a size (--size 256)")
    return OriginalSize() if size is None else PadToSquare(size) if rule == "pad" else CentreCrop(size)


def _grown(regions: Iterable[Region], growth: float) -> list[Region]:
    return [one if one.ratio is None else replace(one, ratio=one.ratio * growth) for one in regions]


def _resize(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
