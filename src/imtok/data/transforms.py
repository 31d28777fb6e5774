"""Square crops of pictures and of their words and faces: pure geometry, with random generators passed in by the caller.

Coordinates are continuous, as in `Sample`: a picture spans [0, width] x [0, height].
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imtok.config import ConfigError, config
from imtok.data.sample import LANDMARKS, Box, Face, Point, Sample, TextRegion, clip_box

WORD_VISIBLE = 0.8
"""A word is dropped if a crop shows a smaller fraction of its box, since half a word is another word."""
FACE_VISIBLE = 0.6
"""A face is dropped if a crop shows a smaller fraction of its box, which extends beyond the features, or cuts off a
landmark."""
MIN_REGION_SIDE = 1.0
"""Regions whose shorter side is below this many pixels in the crop are dropped."""

_MIRRORED = [LANDMARKS.index(name) for name in ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")]

Range = tuple[float, float]


@config
class CropConfig:
    """How a picture is cropped to a square of `resolution` pixels for training. Small pictures are enlarged."""

    resolution: int = 256
    scale: Range = (0.8, 1.0)
    """Range of the crop's side as a fraction of the picture's shorter side, drawn uniformly. The papers do not say."""
    word_height: Range | None = None
    """Zoom onto a random word so that its letters have a height in this range, in pixels of the crop: a small tokenizer
    learns nothing from words that it cannot resolve. Pictures without a word that fits are cropped by `scale`."""
    face_size: Range | None = None
    """Zoom onto a random face so that the longer side of its box is in this range, in pixels; as for `word_height`."""
    max_enlargement: float = 2.0
    """Maximum enlargement of a zoom, which cannot make a word legible that is too small to read in the original."""
    flip: bool = True
    """Mirror pictures with probability 0.5, but never those with words. Unannotated pictures count as without words."""

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ConfigError(f"crop: resolution = {self.resolution} must be positive")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"crop: scale = {self.scale} must be rising shares in (0, 1]")
        for name, sizes in (("word_height", self.word_height), ("face_size", self.face_size)):
            if sizes is not None and not 0 < sizes[0] <= sizes[1]:
                raise ConfigError(f"crop: {name} = {sizes} must be rising and positive")
        if not self.max_enlargement > 0:
            raise ConfigError(f"crop: max_enlargement = {self.max_enlargement} must be positive")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square crop of a picture, resized to `resolution` pixels and optionally mirrored."""

    left: float
    top: float
    side: float
    resolution: int
    flip: bool = False

    def pixels(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """Crop a picture and resize it with an antialiased bicubic filter."""
        height, width = picture.shape[:2]
        right, bottom = min(self.left + self.side, width), min(self.top + self.side, height)  # rounding may exceed
        size, square = (self.resolution, self.resolution), (self.left, self.top, right, bottom)
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, box=square)
        return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else resized)

    def point(self, point: Point) -> Point:
        """Map a point of the picture to crop coordinates, which may lie outside of the crop."""
        scale = self.resolution / self.side
        x, y = (point[0] - self.left) * scale, (point[1] - self.top) * scale
        return (self.resolution - x, y) if self.flip else (x, y)

    def box(self, box: Box, min_visible: float) -> Box | None:
        """Return the visible part of a box in crop coordinates.

        None if it is less than a fraction `min_visible` of the box, or thinner than `MIN_REGION_SIDE`.
        """
        (x0, y0), (x1, y1) = self.point(box[:2]), self.point(box[2:])
        moved = (x1, y0, x0, y1) if self.flip else (x0, y0, x1, y1)
        clipped = clip_box(moved, self.resolution, self.resolution)
        if clipped is None or min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < MIN_REGION_SIDE:
            return None
        return clipped if _area(clipped) >= min_visible * _area(moved) * (1 - 1e-9) else None

    def words(self, words: Iterable[TextRegion]) -> Iterator[TextRegion]:
        """Yield the words visible in the crop (see `WORD_VISIBLE`), with clipped boxes; quads may extend beyond it.

        Raises:
            ValueError: there are words, and the crop mirrors the picture.
        """
        for word in words:
            if self.flip:
                raise ValueError("text must not be mirrored")
            if box := self.box(word.box, WORD_VISIBLE):
                quad = None if word.quad is None else tuple(self.point(corner) for corner in word.quad)
                yield replace(word, box=box, quad=quad)

    def faces(self, faces: Iterable[Face]) -> Iterator[Face]:
        """Yield the faces visible in the crop (see `FACE_VISIBLE`), with clipped boxes; a flip swaps left and right."""
        for face in faces:
            landmarks = None
            if face.landmarks is not None:
                landmarks = tuple(self.point(point) for point in face.landmarks)
                landmarks = tuple(landmarks[i] for i in _MIRRORED) if self.flip else landmarks
                if not all(0 <= value <= self.resolution for point in landmarks for value in point):
                    continue
            if box := self.box(face.box, FACE_VISIBLE):
                yield replace(face, box=box, landmarks=landmarks)


def centre_crop(width: int, height: int, resolution: int) -> Crop:
    """Return the largest centred square crop, as used for evaluation."""
    side = float(min(width, height))
    return Crop(left=(width - side) / 2, top=(height - side) / 2, side=side, resolution=resolution)


def square(picture: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crop the largest centred square of a picture and resize it with an antialiased bicubic filter."""
    height, width = picture.shape[:2]
    return centre_crop(width, height, size).pixels(picture)


def random_crop(sample: Sample, config: CropConfig, rng: np.random.Generator) -> Crop:
    """Return a random training crop, zoomed onto a word or face if the config asks for it and one fits."""
    flip = config.flip and not sample.words and rng.random() < 0.5
    targets = list(zoom_targets(sample, config))
    if targets:
        return replace(targets[rng.integers(len(targets))].draw_crop(rng), flip=flip)
    side = min(sample.width, sample.height) * rng.uniform(*config.scale)
    left, top = _place(side, sample.width, None, rng), _place(side, sample.height, None, rng)
    return Crop(left=left, top=top, side=side, resolution=config.resolution, flip=flip)


@dataclass(frozen=True, kw_only=True)
class ZoomTarget:
    """A word or face that a crop can contain whole at a wanted size; `sides` is the range of that crop's side."""

    region: TextRegion | Face
    sides: Range
    size: tuple[int, int]
    """Width and height of the picture."""
    resolution: int

    def draw_crop(self, rng: np.random.Generator) -> Crop:
        """Return a crop of random size and position that contains the whole region."""
        least, greatest = self.sides
        side = least * (greatest / least) ** rng.random()
        x0, y0, x1, y1 = self.region.box
        left, top = _place(side, self.size[0], (x0, x1), rng), _place(side, self.size[1], (y0, y1), rng)
        return Crop(left=left, top=top, side=side, resolution=self.resolution)


def zoom_targets(sample: Sample, config: CropConfig) -> Iterator[ZoomTarget]:
    """Yield the words and faces that a crop can contain whole at a size in the ranges of the config."""
    regions: list[tuple[TextRegion | Face, float, Range]] = []
    if config.word_height is not None:
        regions += [(word, word.height, config.word_height) for word in sample.words or []]
    if config.face_size is not None:
        regions += [(face, _longer_side(face.box), config.face_size) for face in sample.faces or []]
    for region, size, wanted in regions:
        least = max(config.resolution * max(size / wanted[1], 1 / config.max_enlargement), _longer_side(region.box))
        greatest = float(min(config.resolution * size / wanted[0], sample.width, sample.height))
        if least <= greatest:
            picture = sample.width, sample.height
            yield ZoomTarget(region=region, sides=(least, greatest), size=picture, resolution=config.resolution)


def _place(side: float, length: int, target: Range | None, rng: np.random.Generator) -> float:
    """Return a random start of an interval of length `side` within [0, length] that contains the target, if any."""
    least, most = 0.0, length - side
    if target is not None:
        least, most = max(least, target[1] - side), min(most, target[0])
    return min(max(rng.uniform(least, max(least, most)), 0.0), length - side)


def _longer_side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
