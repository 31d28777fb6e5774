"""Named colours with contrast ratios, and grounds: the backgrounds of rendered signs."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imtok.data.pictures import decode, measure, read_bytes
from imtok.data.sample import DataError, PictureError

COLOURS = {
    "red": (200, 32, 40),
    "orange": (236, 126, 28),
    "yellow": (246, 212, 56),
    "green": (38, 138, 72),
    "blue": (38, 84, 192),
    "purple": (118, 58, 160),
    "pink": (240, 150, 186),
    "brown": (116, 72, 42),
    "black": (24, 24, 28),
    "white": (246, 246, 242),
    "gray": (132, 134, 138),
}
_JITTER = 12
_BUNDLED = {
    "brick.png": ("a brick wall", (176, 96, 74)),
    "grass.png": ("grass", (96, 146, 62)),
    "gravel.png": ("gravel", (168, 160, 150)),
    "coins.png": ("coins", (190, 160, 96)),
    "hubble_deep_field.jpg": ("a starry sky", None),
}
"""scikit-image's textures: file name, description, and a tint for grayscale ones. Its other photographs are excluded,
because demonstrations use them and must not show training data."""
_PHOTO_SIDE = 1024


@dataclass(frozen=True)
class Colour:
    """An RGB shade and its colour name in captions."""

    name: str
    rgb: tuple[int, int, int]

    def contrast(self, other: "Colour") -> float:
        """Return the contrast ratio of WCAG 2: 1 for equal luminance, 21 for black on white."""
        low, high = sorted((_luminance(self.rgb), _luminance(other.rgb)))
        return (high + 0.05) / (low + 0.05)


@dataclass(frozen=True)
class Ground:
    """A background: its pixels, its description in captions, and the colours that letters on it must contrast with.

    `colours` is empty for a photograph, on which no contrast can be guaranteed.
    """

    pixels: UInt8[np.ndarray, "size size 3"]
    description: str
    colours: tuple[Colour, ...]


def with_article(words: str) -> str:
    """Prefix words with an indefinite article: 'a red sign', 'an orange sign'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def draw_colour(rng: np.random.Generator, against: tuple[Colour, ...] = (), contrast: float = 1.0) -> Colour:
    """Return a random shade with at least this contrast to all colours in `against`; if none has it, the best one."""
    names = rng.permutation(list(COLOURS))
    shades = [_shade(rng, str(name)) for name in names]
    scores = [min((shade.contrast(other) for other in against), default=21.0) for shade in shades]
    good = [shade for shade, score in zip(shades, scores, strict=True) if score >= contrast]
    return good[0] if good else shades[int(np.argmax(scores))]


def draw_ground(rng: np.random.Generator, size: int, photos: Sequence["Photo"]) -> Ground:
    """Return a random ground: plain, a gradient, striped, speckled, or a photograph if there are any."""
    kind = rng.choice(["plain", "fading", "striped", "speckled", "photo"], p=[0.3, 0.2, 0.1, 0.1, 0.3])
    if kind == "photo" and photos:
        photo = photos[int(rng.integers(len(photos)))]
        return Ground(photo.draw_crop(rng, size), f"in front of {photo.description}", ())
    first = draw_colour(rng)
    if kind in ("plain", "photo"):
        pixels = np.broadcast_to(np.array(first.rgb, np.uint8), (size, size, 3))
        return Ground(pixels, f"on {with_article(first.name)} background", (first,))
    if kind == "speckled":
        grain = rng.normal(0, rng.uniform(8, 20), (size // 2, size // 2, 1)).repeat(2, 0).repeat(2, 1)
        grain = np.pad(grain, ((0, size % 2), (0, size % 2), (0, 0)), mode="edge")
        return Ground(_to_pixels(first.rgb + grain.repeat(3, 2)), f"on a speckled {first.name} background", (first,))
    second = draw_colour(rng)
    blend = _ramp(rng, size)
    if kind == "striped":
        second = _shade(rng, first.name, jitter=3 * _JITTER)
        blend = (blend * rng.integers(3, 9) % 1 > 0.5).astype(np.float32)
    description = f"striped {first.name}" if kind == "striped" else f"{first.name} to {second.name}"
    pixels = (
        np.array(first.rgb, np.float32) * (1 - blend[..., None]) + np.array(second.rgb, np.float32) * blend[..., None]
    )
    return Ground(_to_pixels(pixels), f"on {with_article(description)} background", (first, second))


@dataclass(frozen=True)
class Photo:
    """A photograph to cut grounds from, its description in captions, and a tint if it is grayscale."""

    path: str
    description: str = "a photograph"
    tint: tuple[int, int, int] | None = None

    def draw_crop(self, rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """Return a random square crop of 40 to 100 % of the shorter side, resized, with random brightness.

        Raises:
            PictureError: the file is no longer readable.
        """
        pixels = _read_photo(self)
        height, width = pixels.shape[:2]
        side = min(height, width) * rng.uniform(0.4, 1.0)
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        square = (left, top, left + side, top + side)
        crop = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, square, reducing_gap=2.0)
        return _to_pixels(np.asarray(crop, np.float32) * rng.uniform(0.7, 1.1))


def find_photos(folder: str | None = None) -> tuple[Photo, ...]:
    """Return the photographs for grounds: those in a user's folder, or scikit-image's textures if it is installed.

    Raises:
        DataError: the folder has no readable pictures.
    """
    if folder is None:
        spec = find_spec("skimage")
        root = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
        return tuple(Photo(str(root / name), *details) for name, details in _BUNDLED.items() if (root / name).is_file())
    photos = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with contextlib.suppress(PictureError):
            measure(read_bytes(path))
            photos.append(Photo(str(path)))
    if not photos:
        raise DataError(f"{folder}: no readable pictures for grounds there")
    return tuple(photos)


@lru_cache(maxsize=64)
def _read_photo(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
    image = Image.fromarray(decode(read_bytes(photo.path), photo.path))
    image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    pixels = np.asarray(image)
    return pixels if photo.tint is None else _to_pixels(pixels.astype(np.float32) / 128 * photo.tint)


def _shade(rng: np.random.Generator, name: str, jitter: int = _JITTER) -> Colour:
    red, green, blue = (np.array(COLOURS[name]) + rng.integers(-jitter, jitter + 1, 3)).clip(0, 255).tolist()
    return Colour(name, (red, green, blue))


def _ramp(rng: np.random.Generator, size: int) -> Float[np.ndarray, "{size} {size}"]:
    """Return a linear ramp from 0 to 1 across the picture, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    along = x * np.cos(angle) + y * np.sin(angle)
    return ((along - along.min()) / np.ptp(along)).astype(np.float32)


def _to_pixels(values: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return values.clip(0, 255).round().astype(np.uint8)


def _luminance(rgb: tuple[int, int, int]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.divide(rgb, 255)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
