"""JPEG and WebP as reconstructors: the rate of their files, and a search for the quality that reaches a target rate."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

from imtok.config import ConfigError, first_line
from imtok.data.pictures import Picture, decode, encode


@dataclass(frozen=True)
class Codec:
    """A picture format, written by Pillow.

    Attributes:
        format: Pillow's name of the format.
        lowest: lowest quality setting.
        highest: highest quality setting; Pillow advises against JPEG above 95.
        options: encoder options for the smallest files.
    """

    format: str
    lowest: int
    highest: int
    options: dict[str, int]

    def compress(self, picture: Picture, quality: int) -> tuple[Picture, float]:
        """Return a picture after compression, and the bits per pixel of its file.

        Raises:
            ConfigError: the picture is larger than the format allows.
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
    """A codec at a quality, or at a target rate in bits per pixel for the mean over a set."""

    codec: Codec
    quality: int | None = None
    rate: float | None = None

    def for_set(self, pictures: Callable[[], Iterable[Picture]]) -> tuple["Setting", str | None]:
        """Return the setting at a fixed quality, and for a target rate also a note on the search.

        Args:
            pictures: returns the pictures of the set, from the beginning at every call.
        """
        if self.rate is None:
            return self, None
        quality, reached = nearest_quality(self.codec, self.rate, pictures)
        limits = {self.codec.lowest: ", the lowest there is,", self.codec.highest: ", the highest there is,"}
        note = f"quality {quality}{limits.get(quality, '')} for {self.rate:g} bits per pixel; {reached:.4f} are reached"
        return replace(self, quality=quality, rate=None), note


def read_setting(name: str) -> Setting | None:
    """Parse `jpeg:QUALITY` or `webp@BITS_PER_PIXEL`; return None for any other name.

    Raises:
        ConfigError: the quality or rate is out of range.
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
    """Find the quality whose mean rate over a set is nearest to a target, and return it with that rate.

    The mean rate grows with the quality, so this is a binary search with one pass over the set per step.

    Args:
        codec: the codec.
        rate: target rate in bits per pixel.
        pictures: returns the pictures of the set, from the beginning at every call; they are never all held in memory.
    """

    @cache
    def mean_rate(quality: int) -> float:
        rates = [codec.compress(picture, quality)[1] for picture in pictures()]
        return sum(rates) / max(len(rates), 1)

    low, high = codec.lowest, codec.highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mean_rate(middle) < rate else (low, middle)
    quality = min((low, high), key=lambda quality: abs(mean_rate(quality) - rate))
    return quality, mean_rate(quality)
