"""Text detection: PP-OCRv6 finds and reads lines, which are split into words by the recognizer's CTC alignment."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

_LINE_HEIGHT = 48  # input height of the recognizer in pixels
_MIN_WIDTH = 320  # narrower lines are padded, as in training
# Pictures are shrunk to the maximum; if their short side is then below the minimum, they are taken to hold no text.
_MIN_SIDE, _MAX_SIDE = 16, 2000
_TALL_RATIO = 1.5  # ratio of height to width from which a line may be vertical
_UNCERTAIN_SCORE = 0.85  # lines with a lower score are also read upside down
_MARGIN = 3.0  # pixels by which detected boxes exceed the glyphs, at the detector's input size
_DELAY = 0.1  # delay of CTC spikes, as a share of a character's width


@dataclass(frozen=True)
class DetectedWord:
    """A word: its corners clockwise from the text's own top left, its text, and a confidence in [0, 1]."""

    quad: Float[np.ndarray, "4 2"]
    text: str
    score: float


@dataclass(frozen=True)
class DetectedLine:
    """A line of text and its words, of which `PPOCRDetector` returns at least one."""

    quad: Float[np.ndarray, "4 2"]
    text: str
    score: float
    words: list[DetectedWord]


@dataclass(frozen=True)
class Glyph:
    """A recognized character, with its centre as a share of the line's width."""

    character: str
    centre: float
    score: float


ReadLine = tuple[np.ndarray, list[Glyph]]
"""A line's corners, ordered so that the text runs from left to right, and its characters."""


class PPOCRDetector:
    """Text detector and recognizer; the detector runs in rapidocr, the recognizer in onnxruntime.

    Attributes:
        name: role/name, set by the registry.
        sha256: digest of the two files, set by the registry.
        min_score: minimum mean character confidence of the returned lines.
    """

    name: str = ""
    sha256: str = ""

    def __init__(self, detector: Path, recognizer: Path, min_score: float = 0.5) -> None:
        from rapidocr import RapidOCR

        self.min_score = min_score
        settings = {"Global.log_level": "error", "Global.max_side_len": _MAX_SIDE, "Det.model_path": str(detector)}
        self._detector = RapidOCR(params=settings)
        self._side = self._detector.cfg.Det.limit_side_len
        self._reader = LineReader(recognizer)

    def detect(self, image: UInt8[np.ndarray, "height width 3"]) -> list[DetectedLine]:
        """Return the lines in an RGB picture, from top to bottom."""
        short, long = sorted(image.shape[:2])
        if short * min(1.0, _MAX_SIDE / long) < _MIN_SIDE:
            return []
        found: Any = self._detector(image[:, :, ::-1], use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None:
            return []
        margin = _MARGIN * min(1.0, short / self._side)  # the detector enlarges small pictures
        readings = self._read(image, [np.asarray(box, np.float64) for box in found.boxes])
        lines = [_line(_trim(quad, margin), glyphs) for quad, glyphs in readings]
        return [line for line in lines if line.words and line.score >= self.min_score]

    def _read(self, image: np.ndarray, quads: list[np.ndarray]) -> list[ReadLine]:
        """Return each quad in the orientation with the best score, with its characters."""
        candidates = [[quad, *_turned(quad, (1, 3))] if _is_tall(quad) else [quad] for quad in quads]
        best = self._best(image, candidates)
        certain = {index for index, (_, glyphs) in enumerate(best) if _score(glyphs) >= _UNCERTAIN_SCORE}
        if self._try_upside_down(image, best, set(range(len(best))) - certain):
            self._try_upside_down(image, best, certain)  # if one line is upside down, the others may be, too
        return best

    def _try_upside_down(self, image: np.ndarray, best: list[ReadLine], indices: set[int]) -> bool:
        """Replace in place the readings that score higher upside down; return whether there were any."""
        order = sorted(indices)
        turned = self._best(image, [_turned(best[index][0], (2,)) for index in order])
        better = [
            (index, reading)
            for index, reading in zip(order, turned, strict=True)
            if _quality(reading) > _quality(best[index])
        ]
        for index, reading in better:
            best[index] = reading
        return bool(better)

    def _best(self, image: np.ndarray, candidates: list[list[np.ndarray]]) -> list[ReadLine]:
        flat = [quad for group in candidates for quad in group]
        readings = iter(zip(flat, self._reader.read([_rectify(image, quad) for quad in flat]), strict=True))
        return [max((next(readings) for _ in group), key=_quality) for group in candidates]


class LineReader:
    """PP-OCRv6's recognizer for rectified lines, which also returns the position of every character."""

    def __init__(self, recognizer: Path, batch_size: int = 6) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(recognizer, providers=["CPUExecutionProvider"])
        alphabet = self._session.get_modelmeta().custom_metadata_map["character"].split("\n")
        self._characters = ["", *alphabet, " "]  # class 0 is CTC's blank
        self._batch_size = batch_size

    def read(self, lines: Sequence[UInt8[np.ndarray, "48 _ 3"]]) -> list[list[Glyph]]:
        """Return the characters of each line, an RGB crop of 48 pixels in height."""
        glyphs: list[list[Glyph]] = [[] for _ in lines]
        order = sorted(range(len(lines)), key=lambda index: lines[index].shape[1])  # little padding within a batch
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            width = max(_MIN_WIDTH, lines[batch[-1]].shape[1])
            inputs = np.zeros((len(batch), 3, _LINE_HEIGHT, width), np.float32)
            for row, index in enumerate(batch):
                pixels = lines[index][:, :, ::-1].astype(np.float32) / 127.5 - 1  # BGR in [-1, 1]
                inputs[row, :, :, : pixels.shape[1]] = pixels.transpose(2, 0, 1)
            (probabilities,) = self._session.run(None, {"x": inputs})
            for row, index in enumerate(batch):
                stretch = width / lines[index].shape[1]
                glyphs[index] = decode_glyphs(np.asarray(probabilities)[row], self._characters, stretch)
        return glyphs


def decode_glyphs(
    probabilities: Float32[np.ndarray, "steps classes"], characters: Sequence[str], stretch: float = 1.0
) -> list[Glyph]:
    """Decode greedily with CTC and return the characters with their positions.

    Args:
        probabilities: class probabilities per step; class 0 is the blank.
        characters: character of each class.
        stretch: ratio of the padded input's width to the line's width.
    """
    best = probabilities.argmax(1)
    starts = np.flatnonzero(np.r_[True, best[1:] != best[:-1]])
    ends = np.r_[starts[1:], len(best)]
    return [
        Glyph(
            str(characters[best[start]]),
            min(1.0, float(start + end) / 2 / len(best) * stretch),
            float(probabilities[start:end, best[start]].max()),
        )
        for start, end in zip(starts, ends, strict=True)
        if best[start] != 0
    ]


def split_words(glyphs: Sequence[Glyph]) -> list[tuple[float, float, str, float]]:
    """Split a line into words (left, right, text, score), with the edges as shares of the line's width.

    Words are separated by spaces. A word extends half a character beyond the centres of its first and last character,
    where a character has the average width of the line; neighbours that would overlap meet halfway.
    """
    groups: list[list[Glyph]] = [[]]
    for glyph in glyphs:
        if glyph.character.isspace():
            groups.append([])
        else:
            groups[-1].append(glyph)
    groups = [group for group in groups if group]
    steps = [after.centre - before.centre for group in groups for before, after in pairwise(group)]
    width = float(np.mean(steps)) if steps else 1 / max(1, len(glyphs))
    edges = [[group[0].centre - (0.5 + _DELAY) * width, group[-1].centre + (0.5 - _DELAY) * width] for group in groups]
    for before, after in pairwise(edges):
        if before[1] > after[0]:
            before[1] = after[0] = (before[1] + after[0]) / 2
    return [
        (max(0.0, left), min(1.0, right), "".join(glyph.character for glyph in group), _score(group))
        for (left, right), group in zip(edges, groups, strict=True)
    ]


def _line(quad: np.ndarray, glyphs: list[Glyph]) -> DetectedLine:
    top, bottom = quad[:2], quad[[3, 2]]  # each edge from left to right
    words = []
    for left, right, text, score in split_words(glyphs):
        shares = np.array([[1 - left, left], [1 - right, right]])
        corners = np.concatenate([shares @ top, (shares @ bottom)[::-1]])
        words.append(DetectedWord(corners, text, score))
    return DetectedLine(quad, " ".join(word.text for word in words), _score(glyphs), words)


def _quality(reading: ReadLine) -> float:
    return _score(reading[1])


def _score(glyphs: Sequence[Glyph]) -> float:
    return float(np.mean([glyph.score for glyph in glyphs])) if glyphs else 0.0


def _size(quad: np.ndarray) -> tuple[float, float]:
    """Return width and height of a quad, each from the longer of two opposite sides."""
    sides = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
    return float(max(sides[0], sides[2])), float(max(sides[1], sides[3]))


def _is_tall(quad: np.ndarray) -> bool:
    width, height = _size(quad)
    return height >= _TALL_RATIO * width


def _turned(quad: np.ndarray, quarters: Sequence[int]) -> list[np.ndarray]:
    """Return the quad turned by each of the numbers of quarter turns: the same area with another corner as top left."""
    return [np.roll(quad, -quarter, axis=0) for quarter in quarters]


def _trim(quad: np.ndarray, margin: float) -> np.ndarray:
    """Remove the detector's margin at top and bottom, but at most a fifth of the height each."""
    left, right = quad[3] - quad[0], quad[2] - quad[1]
    share = min(0.2, margin / max(_size(quad)[1], 1e-6))
    return np.stack([quad[0] + share * left, quad[1] + share * right, quad[2] - share * right, quad[3] - share * left])


def _rectify(image: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Warp a quad to a horizontal line of text, 48 pixels high."""
    import cv2

    width, height = _size(quad)
    columns = max(8, round(_LINE_HEIGHT * width / max(height, 1.0)))
    corners = np.array([[0, 0], [columns, 0], [columns, _LINE_HEIGHT], [0, _LINE_HEIGHT]], np.float32)
    warp = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
    return cv2.warpPerspective(
        image, warp, (columns, _LINE_HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
