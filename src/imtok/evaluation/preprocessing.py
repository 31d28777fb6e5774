"""Preprocessing of pictures before a tokenizer, and its inverse: original size, padding to a square, or centre crop."""

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
"""How a picture of any shape is converted to a square."""
Region = TypeVar("Region", TextRegion, Face)


class Preprocessing:
    """Base class of preprocessing rules; by default, all methods leave pictures unchanged.

    Attributes:
        rule: description of the rule.
    """

    rule: str

    def cut(self, sample: Sample, picture: Picture) -> tuple[Sample, Picture]:
        """Return the part of a picture that the evaluation uses, and its annotations; by default, everything."""
        return sample, picture

    def prepare(self, picture: Picture) -> Picture:
        """Return the picture as it enters the tokenizer."""
        return picture

    def content(self, prepared: Picture, original: Picture) -> Picture:
        """Return the part of a prepared or reconstructed picture that shows the original, without padding."""
        return prepared

    def restore(self, reconstruction: Picture, original: Picture) -> Picture:
        """Return the reconstruction at the original's size."""
        return reconstruction


class OriginalSize(Preprocessing):
    """No preprocessing; the tokenizer itself pads pictures to its grid and crops them back."""

    rule = "each picture at its own size"


@dataclass(frozen=True)
class PadToSquare(Preprocessing):
    """Resize the longer side to `size` pixels and pad to a square; invert both after the tokenizer.

    This is TokBench's preprocessing, as in its released scripts (such as resize_rec.py): the shorter side is rounded
    up, the padding is black and centred, and the filter is LANCZOS in both directions.
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

    def restore(self, reconstruction: Picture, original: Picture) -> Picture:
        height, width = original.shape[:2]
        return _resize(self.content(reconstruction, original), width, height)

    def _place(self, original: Picture) -> tuple[int, int, int, int]:
        """Return the picture's position in the square: top, left, height and width, rounded up as in TokBench."""
        longer = max(original.shape[:2])
        height, width = (-(-side * self.size // longer) for side in original.shape[:2])
        return (self.size - height) // 2, (self.size - width) // 2, height, width


@dataclass(frozen=True)
class CentreCrop(Preprocessing):
    """The largest centred square, resized to `size` pixels; it replaces the original.

    ImageNet is prepared this way for rFID, and so are reference pictures for generated pictures. InsightTok (appendix
    F.1), FQGAN and TexTok state neither the crop nor its filter. This is ADM's crop, which the field's scripts have
    adopted: halve while both sides are at least twice the size, resize the shorter side to the size, then crop.
    """

    size: int
    rule = "ADM's centred square: halved (BOX), then resized (BICUBIC)"

    def cut(self, sample: Sample, picture: Picture) -> tuple[Sample, Picture]:
        """Return the square, with the words and faces that training crops would keep (`Crop.words`, `Crop.faces`).

        A size stated in TokBench's files is a share of the picture's longer side, so it grows with the crop.
        """
        height, width = picture.shape[:2]
        crop = centre_crop(width, height, self.size)
        growth = max(height, width) / crop.side
        cut = replace(
            sample,
            width=self.size,
            height=self.size,
            words=None if sample.words is None else _scale_ratios(crop.words(sample.words), growth),
            faces=None if sample.faces is None else _scale_ratios(crop.faces(sample.faces), growth),
        )
        return cut, self.pixels(picture)

    def pixels(self, picture: Picture) -> Picture:
        """Return the square crop of a picture."""
        image = Image.fromarray(picture)
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def make_preprocessing(size: int | None, rule: FitRule) -> Preprocessing:
    """Return the preprocessing for a size in pixels; None keeps every picture at its own size.

    Raises:
        ConfigError: a crop without a size.
    """
    if size is None and rule == "crop":
        raise ConfigError("a crop needs a size (--size 256)")
    return OriginalSize() if size is None else PadToSquare(size) if rule == "pad" else CentreCrop(size)


def _scale_ratios(regions: Iterable[Region], growth: float) -> list[Region]:
    return [region if region.ratio is None else replace(region, ratio=region.ratio * growth) for region in regions]


def _resize(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
