"""Square crops of pictures, and where their words and faces go: pure geometry, no randomness that is not handed in.

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
"""A word of which a crop shows a smaller share of its box is dropped: half a word is another word."""
FACE_VISIBLE = 0.6
"""Likewise for faces, whose boxes reach beyond the features; their landmarks must all be inside."""
MIN_REGION_SIDE = 1.0
"""Regions that come out thinner than a pixel are dropped."""

_MIRRORED = [LANDMARKS.index(name) for name in ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")]

Range = tuple[float, float]


@config
class CropConfig:
    """How a picture becomes a square of `resolution` pixels for training. Small pictures are enlarged."""

    resolution: int = 256
    scale: Range = (0.8, 1.0)
    """Side of the crop as a share of the picture's shorter side, uniformly at random. The papers do not say."""
    word_height: Range | None = None
    """Zoom onto a random word so that its letters come out between these many pixels high: a small tokenizer has
    nothing to learn from words that it cannot resolve. Pictures without a word that fits are cropped by `scale`."""
    face_size: Range | None = None
    """Likewise for the longer side of a random face's box."""
    max_enlargement: float = 2.0
    """A zoom does not go further than that: a word that was too small to read stays so."""
    flip: bool = True
    """Mirror every other picture. Never one with words; one whose text is unknown is taken to have none."""

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
    """A square of a picture, resized to `resolution` pixels and perhaps mirrored."""

    left: float
    top: float
    side: float
    resolution: int
    flip: bool = False

    def pixels(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """What the crop shows, with an antialiased bicubic filter."""
        height, width = picture.shape[:2]
        right, bottom = min(self.left + self.side, width), min(self.top + self.side, height)  # one rounding error less
        size, square = (self.resolution, self.resolution), (self.left, self.top, right, bottom)
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, box=square)
        return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else resized)

    def point(self, point: Point) -> Point:
        """Where a point of the picture comes to lie, perhaps outside."""
        scale = self.resolution / self.side
        x, y = (point[0] - self.left) * scale, (point[1] - self.top) * scale
        return (self.resolution - x, y) if self.flip else (x, y)

    def box(self, box: Box, min_visible: float) -> Box | None:
        """The visible part of a box, or None when less than a share of `min_visible` is."""
        (x0, y0), (x1, y1) = self.point(box[:2]), self.point(box[2:])
        moved = (x1, y0, x0, y1) if self.flip else (x0, y0, x1, y1)
        clipped = clip_box(moved, self.resolution, self.resolution)
        if clipped is None or min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < MIN_REGION_SIDE:
            return None
        return clipped if _area(clipped) >= min_visible * _area(moved) * (1 - 1e-9) else None

    def words(self, words: Iterable[TextRegion]) -> Iterator[TextRegion]:
        """The words that the crop shows (see `WORD_VISIBLE`), boxes clipped to it; quads may reach beyond.

        Raises:
            ValueError: the crop mirrors the picture.
        """
        for word in words:
            if self.flip:
                raise ValueError("text must not be mirrored")
            if box := self.box(word.box, WORD_VISIBLE):
                quad = None if word.quad is None else tuple(self.point(corner) for corner in word.quad)
                yield replace(word, box=box, quad=quad)

    def faces(self, faces: Iterable[Face]) -> Iterator[Face]:
        """The faces that the crop shows (see `FACE_VISIBLE`), boxes clipped; under a flip left and right swap."""
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
    """The largest centred square: the crop for evaluation."""
    side = float(min(width, height))
    return Crop(left=(width - side) / 2, top=(height - side) / 2, side=side, resolution=resolution)


def square(picture: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The largest centred square of a picture, resized with an antialiased bicubic filter."""
    height, width = picture.shape[:2]
    return centre_crop(width, height, size).pixels(picture)


def random_crop(sample: Sample, config: CropConfig, rng: np.random.Generator) -> Crop:
    """A crop for training: onto a random word or face where the config wants that and one fits, else anywhere."""
    flip = config.flip and not sample.words and rng.random() < 0.5
    targets = list(zoom_targets(sample, config))
    if targets:
        return replace(targets[rng.integers(len(targets))].draw_crop(rng), flip=flip)
    side = min(sample.width, sample.height) * rng.uniform(*config.scale)
    left, top = _place(side, sample.width, None, rng), _place(side, sample.height, None, rng)
    return Crop(left=left, top=top, side=side, resolution=config.resolution, flip=flip)


@dataclass(frozen=True, kw_only=True)
class ZoomTarget:
    """A word or face that a crop can show whole at a wanted size, and the least and greatest side of such a crop."""

    region: TextRegion | Face
    sides: Range
    size: tuple[int, int]
    """Width and height of the picture."""
    resolution: int

    def draw_crop(self, rng: np.random.Generator) -> Crop:
        """A crop of random size and place that shows the region whole."""
        least, greatest = self.sides
        side = least * (greatest / least) ** rng.random()
        x0, y0, x1, y1 = self.region.box
        left, top = _place(side, self.size[0], (x0, x1), rng), _place(side, self.size[1], (y0, y1), rng)
        return Crop(left=left, top=top, side=side, resolution=self.resolution)


def zoom_targets(sample: Sample, config: CropConfig) -> Iterator[ZoomTarget]:
    """The words and faces that crops can show whole at the sizes that the config wants."""
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
    """Where a stretch of `side` starts within `length` so that it contains the target, anywhere with equal chance."""
    least, most = 0.0, length - side
    if target is not None:
        least, most = max(least, target[1] - side), min(most, target[0])
    return min(max(rng.uniform(least, max(least, most)), 0.0), length - side)


def _longer_side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
