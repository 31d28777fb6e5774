"""Rendered pictures of signs and paragraphs, with exact words, boxes, captions and labels."""

import math
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from imtok.data.filling import fill
from imtok.data.fonts import FONT_SUFFIXES, Typeface, find_typefaces
from imtok.data.grounds import Colour, draw_colour, draw_ground, find_photos, with_article
from imtok.data.pictures import MAX_PIXELS, encode
from imtok.data.plain_signs import PlainSigns, PlainSplit
from imtok.data.readers import fingerprint
from imtok.data.sample import Box, DataError, Dataset, Sample, TextRegion, clip_box
from imtok.data.typesetting import SetWord, bounds, largest_size, set_paragraph, set_rows
from imtok.data.vocabulary import Split, draw_paragraph, draw_words

_OVERSAMPLING = 2
"""Signs are rendered this many times larger, then warped and downscaled, which smooths their edges."""
_MARGIN = 0.06
"""Margin on each side that is kept free of letters, as a fraction of the picture's side."""
_TURN = 4.0
"""Standard deviation of a sign's rotation in degrees."""
_TILT = 0.035
"""Maximum shift of a picture's corner by perspective, as a fraction of its side."""
_CONTRAST, _BOARD_CONTRAST, _PARAGRAPH_CONTRAST = 3.0, 1.4, 4.5
"""Minimum contrast ratios: sign letters (WCAG's limit for large print), board to ground, letters of a paragraph."""
_SMALLEST_PRINT = 6
"""Minimum pixels per em for a paragraph to be legible."""
_ATTEMPTS = 300


def synthesize(
    out: str,
    *,
    count: int = 1000,
    seed: int = 0,
    size: int = 128,
    paragraphs: bool = False,
    plain: bool = False,
    split: Split | PlainSplit = "train",
    labels: tuple[str, ...] = (),
    colours: tuple[str, ...] = (),
    steady: bool = False,
    word_height: tuple[float, float] = (24.0, 48.0),
    grounds: str | None = None,
    fonts: str | None = None,
    samples_per_shard: int = 1024,
) -> int:
    """Write rendered pictures with exact word boxes, captions and labels as shards.

    If interrupted at any point, the same call resumes after the last finished shard and produces the same files.

    Args:
        out: output folder.
        count: number of pictures.
        seed: random seed of the pictures.
        size: side of the square pictures in pixels; paragraphs need about 256 to be legible.
        paragraphs: render paragraphs of 100 to 300 characters on a plain background instead of signs.
        plain: render plain signs, for training generators: one upright word on a single colour.
        split: "train" and "test" share no word and no typeface family; for plain signs "train", "combinations" or
            "words" (see `PlainSplit`).
        labels: kinds of words on plain signs, such as "animal"; by default all.
        colours: colours of plain signs, such as "red"; by default all eleven.
        steady: centre the words of plain signs, in a single typeface and at a fixed height (less where a word would be
            too wide).
        word_height: minimum and maximum height of the words in pixels, for signs that are not plain.
        grounds: folder of photographs to use as backgrounds of signs instead of scikit-image's textures.
        fonts: folder of TrueType or OpenType files to use instead of the installed typefaces.
        samples_per_shard: pictures per file; also the most work that an interruption can lose.

    Returns:
        The number of pictures in `out`.

    Raises:
        DataError: a number is out of range, `out` holds other pictures, or the split or another option does not apply
            to this kind of pictures; see also `SyntheticPictures`.
    """
    settings = {
        "seed": seed,
        "size": size,
        "paragraphs": paragraphs,
        "plain": plain,
        "split": split,
        "labels": list(labels),
        "colours": list(colours) or None,
        "steady": steady,
        "word_height": list(word_height),
        "grounds": grounds,
        "fonts": fonts,
        "samples_per_shard": samples_per_shard,
    }
    if grounds is not None:
        settings["grounds_fingerprint"] = fingerprint(grounds)
    if fonts is not None:
        settings["fonts_fingerprint"] = fingerprint(fonts, FONT_SUFFIXES)
    if count < 1 or seed < 0 or not 0 < size * size <= MAX_PIXELS:
        raise DataError(f"count, seed and size must be at least 1, 0 and 1, and size at most {math.isqrt(MAX_PIXELS)}")
    pictures: Dataset
    if plain and not (paragraphs or grounds) and split in get_args(PlainSplit):
        pictures = PlainSigns(
            count,
            seed=seed,
            size=size,
            split=cast(PlainSplit, split),
            fonts=fonts,
            labels=labels or None,
            colours=colours or None,
            steady=steady,
        )
    elif not (plain or labels or colours or steady or (paragraphs and grounds)) and split in get_args(Split):
        pictures = SyntheticPictures(
            count,
            seed=seed,
            size=size,
            paragraphs=paragraphs,
            split=cast(Split, split),
            word_height=word_height,
            grounds=grounds,
            fonts=fonts,
        )
    else:
        kind = f"{'paragraphs' if paragraphs else 'signs'}{' on photographs' if grounds else ''} of the split {split}"
        chosen = f" with words of chosen kinds ({', '.join(labels)})" if labels else ""
        chosen += f" in chosen colours ({', '.join(colours)})" if colours else ""
        chosen += " with steady words" if steady else ""
        raise DataError(f"there are no {'plain ' if plain else ''}{kind}{chosen}; see imtok synthesize --help")
    return fill(pictures, out, settings, samples_per_shard).kept


class SyntheticPictures(Dataset):
    """Rendered text pictures, each made on demand from (seed, index) alone, given the same installed typefaces.

    A sign has one to three words on a board or directly on its ground (background), slightly rotated, tilted, blurred
    and noisy. A paragraph (InsightTok F.2.2) has 100 to 300 characters on a plain background.

    Args:
        count: length of the sequence.
        seed: random seed of the pictures.
        size: side of the square pictures in pixels; paragraphs need about 256 to be legible.
        paragraphs: render paragraphs instead of signs.
        split: "train" and "test" share no word and no typeface family.
        word_height: range of the height of a sign's words in pixels, before the slight tilt; in a row of several words,
            that of the least tall one.
        grounds: folder of photographs to use as backgrounds of some signs instead of scikit-image's textures.
        fonts: folder of TrueType or OpenType files to use instead of the installed typefaces.

    Raises:
        DataError: a folder has no fonts or no pictures, or `word_height` is out of range or too large for the picture.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        size: int = 128,
        paragraphs: bool = False,
        split: Split = "train",
        word_height: tuple[float, float] = (24.0, 48.0),
        grounds: str | None = None,
        fonts: str | None = None,
    ) -> None:
        low, high = word_height
        if not (paragraphs or 4 <= low <= high < math.inf):
            raise DataError(f"word height {low:g} to {high:g}: the smallest must be 4 or more, the largest no smaller")
        self._count = count
        self.seed = seed
        self.size = size
        self.paragraphs = paragraphs
        self.split: Split = split
        self.word_height = word_height
        self.typefaces = find_typefaces(fonts, split)
        self.photos = find_photos(grounds)

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        rendered = self._render_paragraph(rng) if self.paragraphs else self._render_sign(rng)
        return Sample(
            image=encode(rendered.pixels, "JPEG", quality=int(rng.integers(80, 96))),
            path=f"{rendered.label}/{index:08d}.jpg",
            width=self.size,
            height=self.size,
            words=rendered.words,
            faces=[],
            captions=[rendered.caption],
            label=rendered.label,
            source="synthetic",
            cluster=f"synthetic/{self.split}/{self.seed}/{index}",
        )

    def _render_sign(self, rng: np.random.Generator) -> "_Rendered":
        label, words = self._place_words(rng)
        text = " ".join(word.text for word in words)
        ground = draw_ground(rng, self.size, self.photos)
        if not ground.colours or rng.random() < 0.7:
            board = draw_colour(rng, ground.colours, _BOARD_CONTRAST)
            ink = draw_colour(rng, (board,), _CONTRAST)
            caption = f'{with_article(board.name)} sign that says "{text}" in {ink.name} letters {ground.description}'
        else:
            board = None
            ink = draw_colour(rng, ground.colours, _CONTRAST)
            caption = f'the text "{text}" in {ink.name} letters {ground.description}'
        warp = _draw_warp(rng, self.size, words)
        canvas = _draw_overlay(rng, self.size * _OVERSAMPLING, words, ink, board)
        picture = Image.fromarray(ground.pixels).convert("RGBA")
        picture.alpha_composite(_apply_warp(canvas, warp, self.size))
        regions = [_warp_region(word, warp, self.size) for word in words]
        return _Rendered(label, caption, _add_blur_and_noise(rng, picture.convert("RGB")), regions)

    def _place_words(self, rng: np.random.Generator) -> tuple[str, list[SetWord]]:
        """Return a random label and words of it, placed on the oversampled canvas inside the margins."""
        canvas = self.size * _OVERSAMPLING
        free = canvas * (1 - 2 * _MARGIN)
        low, high = (height * _OVERSAMPLING for height in self.word_height)
        for attempt in range(_ATTEMPTS):
            count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2])) if attempt < _ATTEMPTS // 2 else 1
            label, texts = draw_words(rng, count, self.split)
            face = self.typefaces[rng.integers(len(self.typefaces))]
            texts = texts if face.has_lower_case else [text.upper() for text in texts]
            if not all(face.draws(text) for text in texts):
                continue
            side_by_side = count > 1 and rng.random() < 0.3
            rows = [texts[:2], *([text] for text in texts[2:])] if side_by_side else [[text] for text in texts]
            spacing, centred, height = rng.uniform(0.25, 0.5), rng.random() < 0.7, rng.uniform(low, high)
            words = set_rows(face, rows, height, spacing, centred)
            excess = max(bounds(words)[2:]) / free
            if excess > 1 and height / excess >= low:
                words = set_rows(face, rows, max(low, 0.97 * height / excess), spacing, centred)
            _, _, width, tall = bounds(words)
            if max(width, tall) <= free:
                x, y = rng.uniform(0, free - width), rng.uniform(0, free - tall)
                return label, [word.moved(round(canvas * _MARGIN + x), round(canvas * _MARGIN + y)) for word in words]
        raise DataError(f"no words {self.word_height[0]:g} pixels high fit in pictures of {self.size}")

    def _choose_paragraph(self, rng: np.random.Generator) -> tuple[Typeface, str]:
        """Return a random typeface, and a paragraph whose letters it has."""
        for _ in range(_ATTEMPTS):
            face = self.typefaces[rng.integers(len(self.typefaces))]
            text = draw_paragraph(rng, self.split)
            text = text if face.has_lower_case else text.upper()
            if all(face.draws(word) for word in text.split()):
                return face, text
        raise DataError("no typeface has the letters of a paragraph")

    def _render_paragraph(self, rng: np.random.Generator) -> "_Rendered":
        paper = draw_colour(rng) if rng.random() < 0.5 else Colour("white", (255, 255, 255))
        ink = draw_colour(rng, (paper,), _PARAGRAPH_CONTRAST)
        face, text = self._choose_paragraph(rng)
        free = self.size * (1 - 2 * _MARGIN)
        size = round(largest_size(face, text, free, free) * rng.uniform(0.8, 1.0))
        if size < _SMALLEST_PRINT:
            raise DataError(f"a paragraph cannot be read in pictures of {self.size}; 256 is a good size")
        words = set_paragraph(face, text, size, free)
        margin = self.size * _MARGIN
        down = rng.uniform(0, max(0.0, free - bounds(words)[3]))
        words = [word.moved(round(margin), round(margin + down)) for word in words]
        canvas = Image.new("RGB", (self.size, self.size), paper.rgb)
        for word in words:
            word.draw(canvas, ink.rgb)
        where = f"on {with_article(paper.name)} background"
        caption = f'The image shows clear, {ink.name} text {where} that reads: "{text}"'
        boxes = [(word, clip_box(word.box, self.size, self.size)) for word in words]
        regions = [TextRegion(box=box, text=word.text) for word, box in boxes if box]
        return _Rendered("paragraph", caption, np.asarray(canvas), regions)


@dataclass(frozen=True)
class _Rendered:
    label: str
    caption: str
    pixels: UInt8[np.ndarray, "size size 3"]
    words: list[TextRegion]


def _draw_overlay(
    rng: np.random.Generator, side: int, words: list[SetWord], ink: Colour, board: Colour | None
) -> Image.Image:
    """Draw board and letters on a transparent canvas."""
    canvas = Image.new("RGBA", (side, side))
    if board is not None:
        _draw_board(rng, canvas, bounds(words), ink, board)
    elif rng.random() < 0.3:
        depth = round(side * rng.uniform(0.006, 0.015))
        shadow = Image.new("RGBA", (side, side))
        for word in words:
            word.moved(depth, depth).draw(shadow, (0, 0, 0, 90))
        canvas.alpha_composite(shadow)
    for word in words:
        word.draw(canvas, ink.rgb)
    return canvas


def _draw_board(rng: np.random.Generator, canvas: Image.Image, box: Box, ink: Colour, board: Colour) -> None:
    side = canvas.width
    padding = side * rng.uniform(0.025, 0.09, 2)
    left, top, right, bottom = box[0] - padding[0], box[1] - padding[1], box[2] + padding[0], box[3] + padding[1]
    roundest = min(3.4 * padding.min(), (bottom - top) / 2)  # beyond it, letters would overlap the corners
    corner = roundest * float(rng.choice([0.0, 0.3, 0.6, 1.0]))
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.5:
        depth = side * rng.uniform(0.01, 0.025)
        draw.rounded_rectangle((left + depth, top + depth, right + depth, bottom + depth), corner, (0, 0, 0, 70))
    draw.rounded_rectangle((left, top, right, bottom), corner, (*board.rgb, 255))
    if rng.random() < 0.35:
        gap, width = side * 0.012, max(2, round(side * 0.008))
        frame = (left + gap, top + gap, right - gap, bottom - gap)
        draw.rounded_rectangle(frame, max(0.0, corner - gap), outline=ink.rgb, width=width)


def _draw_warp(rng: np.random.Generator, size: int, words: list[SetWord]) -> Float[np.ndarray, "3 3"]:
    """Return a random homography from the oversampled canvas to the picture that keeps all words inside it."""
    canvas = size * _OVERSAMPLING
    corners = np.array([(0, 0), (canvas, 0), (canvas, canvas), (0, canvas)], dtype=np.float64)
    angle = np.deg2rad(np.clip(rng.normal(0, _TURN), -3 * _TURN, 3 * _TURN))
    shifts = rng.uniform(-_TILT, _TILT, (4, 2)) * size
    word_corners = np.concatenate([_corners(word.box) for word in words])
    strength = 1.0
    while True:
        cos, sin = np.cos(angle * strength), np.sin(angle * strength)
        turned = (corners / _OVERSAMPLING - size / 2) @ np.array([[cos, sin], [-sin, cos]]) + size / 2
        targets = turned + shifts * strength
        warp = _solve_homography(corners, targets)
        moved = _apply_homography(warp, word_corners)
        if strength < 0.1 or (moved.min() >= 1 and moved.max() <= size - 1):
            return warp
        strength *= 0.7


def _solve_homography(sources: Float[np.ndarray, "4 2"], targets: Float[np.ndarray, "4 2"]) -> Float[np.ndarray, "3 3"]:
    """Return the homography that maps four points to four others."""
    rows = []
    for (x, y), (u, v) in zip(sources, targets, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), targets.ravel()), 1.0).reshape(3, 3)


def _apply_homography(warp: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    moved = np.column_stack([points, np.ones(len(points))]) @ warp.T
    return moved[:, :2] / moved[:, 2:]


def _apply_warp(canvas: Image.Image, warp: Float[np.ndarray, "3 3"], size: int) -> Image.Image:
    """Warp the oversampled canvas by the homography and downscale it to the picture's size."""
    enlarge = np.diag([_OVERSAMPLING, _OVERSAMPLING, 1.0])
    inverse = np.linalg.inv(enlarge @ warp)
    coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    warped = canvas.transform(canvas.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return warped.reduce(_OVERSAMPLING)


def _warp_region(word: SetWord, warp: Float[np.ndarray, "3 3"], size: int) -> TextRegion:
    quad = _apply_homography(warp, _corners(word.box))
    box = clip_box([*quad.min(0), *quad.max(0)], size, size)
    assert box is not None
    return TextRegion(box=box, text=word.text, quad=tuple((float(x), float(y)) for x, y in quad))


def _corners(box: Box) -> Float[np.ndarray, "4 2"]:
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def _add_blur_and_noise(rng: np.random.Generator, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Add slight blur and sensor noise, each at random."""
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    if rng.random() < 0.5:
        return np.asarray(picture)
    noise = rng.standard_normal((picture.height, picture.width, 3), dtype=np.float32) * np.float32(rng.uniform(1, 8))
    return (np.asarray(picture, dtype=np.float32) + noise).clip(0, 255).round().astype(np.uint8)
