"""JPEG and WebP as competitors: what a picture costs in bytes there, and the quality of a wanted rate."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

from imtok.config import ConfigError, first_line
from imtok.data.pictures import Picture, decode, encode


@dataclass(frozen=True)
class Codec:
    """A picture format by Pillow's writer.

    Attributes:
        format: as Pillow calls it.
        lowest: quality that it takes.
        highest: likewise; Pillow advises against JPEG above 95.
        options: of the writer, for its smallest files.
    """

    format: str
    lowest: int
    highest: int
    options: dict[str, int]

    def compress(self, picture: Picture, quality: int) -> tuple[Picture, float]:
        """What is left of a picture, and the bits of its file per pixel.

        Raises:
            ConfigError: larger than the format can be.
        """
        try:
            data = encode(picture, self.format, quality=quality, **self.options)
        except (OSError, ValueError) as error:
            height, width = picture.shape[:2]
            raise ConfigError(f"{self.format}: cannot write {width} x {height} pixels ({first_line(error)})") from None
        return decode(data), len(data) * 8 / picture[..., 0].size


CODECS = {
    "jpeg": Codec("JPEG", 1, 95, {"optimize": 1}),
    "webp": Codec("WEBP", 0, 100, {"method": 6}),
}
_NAME = re.compile(rf"({'|'.join(CODECS)})([:@])([0-9]*\.?[0-9]+)")


@dataclass(frozen=True)
class Setting:
    """A codec at a quality, or at a rate in bits per pixel that a set's mean shall be nearest to."""

    codec: Codec
    quality: int | None = None
    rate: float | None = None

    def for_set(self, pictures: Callable[[], Iterable[Picture]]) -> tuple["Setting", str | None]:
        """The same at a fixed quality, and what was searched and found where it had none.

        Args:
            pictures: of the set, from the beginning at every call.
        """
        if self.rate is None:
            return self, None
        quality, reached = nearest_quality(self.codec, self.rate, pictures)
        end = {self.codec.lowest: ", the lowest there is,", self.codec.highest: ", the highest there is,"}
        note = f"quality {quality}{end.get(quality, '')} for {self.rate:g} bits per pixel; {reached:.4f} are reached"
        return replace(self, quality=quality, rate=None), note


def read_setting(name: str) -> Setting | None:
    """`jpeg:QUALITY` or `webp@BITS_PER_PIXEL`; None for whatever is called otherwise.

    Raises:
        ConfigError: no such quality or rate.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    codec, kind, number = CODECS[parts[1]], parts[2], parts[3]
    if kind == ":":
        if not number.isdecimal() or not codec.lowest <= int(number) <= codec.highest:
            raise ConfigError(f"{name}: the quality is a whole number from {codec.lowest} to {codec.highest}")
        return Setting(codec, quality=int(number))
    if float(number) == 0:
        raise ConfigError(f"{name}: the rate is a number of bits per pixel, such as {parts[1]}@0.25")
    return Setting(codec, rate=float(number))


def nearest_quality(codec: Codec, rate: float, pictures: Callable[[], Iterable[Picture]]) -> tuple[int, float]:
    """The quality whose mean rate over a set is nearest to a wanted one, and the rate it reaches.

    The mean rate grows with the quality, so half of the qualities that are left fall away with every pass over the set.

    Args:
        codec: which.
        rate: in bits per pixel.
        pictures: of the set, from the beginning at every call; never held as a whole.
    """

    @cache
    def reached(quality: int) -> float:
        rates = [codec.compress(picture, quality)[1] for picture in pictures()]
        return sum(rates) / max(len(rates), 1)

    low, high = codec.lowest, codec.highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(middle) < rate else (low, middle)
    quality = min((low, high), key=lambda quality: abs(reached(quality) - rate))
    return quality, reached(quality)
