"""Text in generated pictures, compared with the requested text: a detector locates the lines, a judge reads them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imtok.config import ConfigError
from imtok.data.pictures import Picture
from imtok.data.sample import TextRegion
from imtok.evaluation.generated_meters import Generated, GeneratedMeter
from imtok.evaluation.meters import Measurement, make_items
from imtok.evaluation.text import TextJudge, letters, normalized_edit_similarity, read_words
from imtok.pretrained import DetectedLine, DetectedWord

_PLAIN = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0x2026: "..."}
"""ASCII equivalents of curly quotation marks, dashes and the ellipsis."""

OWN_READER = "text_features/ppocrv6"
"""Recognizer that the detector itself uses; its weights are one of the detector's two files, which share one hash."""


@runtime_checkable
class LineDetector(Protocol):
    """Detects lines of text.

    Attributes:
        name: role/name in the registry.
        sha256: hash of its weights.
    """

    name: str
    sha256: str

    def detect(self, image: np.ndarray) -> list[DetectedLine]:
        """Return the lines in an RGB picture."""
        ...


class RenderedTextMeter(GeneratedMeter[list[dict[str, Any] | None]]):
    """Compares the text in a picture, as a whole and word by word, with the requested text (InsightTok, F.2.2).

    `rendered_text_ned` is eq. 17 between all text that is read, line by line, and the requested text.
    `rendered_word_accuracy` is the share of the requested words that are read anywhere in the picture, each at most as
    often as it was read. Typographic quotation marks, dashes and ellipses count as their ASCII equivalents, the only
    ones that English text recognizers output. Pictures without a requested text are not scored.

    Deviation: InsightTok uses another OCR model (its reference 40); results here name the networks that were used.

    Args:
        detector: network of the role `text_detector`, which locates the lines.
        judge: network that reads the lines; None uses the detector's own reading, which comes from the network of the
            text losses.
    """

    metrics = ("rendered_text_ned", "rendered_word_accuracy", "rendered_word_accuracy_alnum")

    def __init__(self, detector: LineDetector, judge: TextJudge | None) -> None:
        self.detector, self.judge = detector, judge
        self._items: list[dict[str, Any]] = []
        self._groups: list[int] = []
        self._without_text = 0

    def process(self, batch: Sequence[Generated]) -> list[dict[str, Any] | None]:
        """Return a line of `items.jsonl` for each picture; None for a picture without a requested text."""
        return [self._read(one, plain(one.prompt_info.text)) if one.prompt_info.text else None for one in batch]

    def _read(self, one: Generated, text: str) -> dict[str, Any]:
        read = plain(read_picture(self.detector, self.judge, one.picture))
        return {
            "kind": "rendered",
            "path": one.sample.path,
            "text": text,
            "read": read,
            "ned": normalized_edit_similarity(text, read),
            "found": found_words(text.split(), read.split()),
            "found_alnum": found_words(*(_alnum_words(words) for words in (text, read))),
        }

    def add(self, found: list[dict[str, Any] | None], groups: Sequence[int]) -> None:
        for item, group in zip(found, groups, strict=True):
            if item is None:
                self._without_text += 1
            else:
                self._items.append(item)
                self._groups.append(group)

    def measure(self, metric: str) -> Measurement:
        if not self._items:
            raise ConfigError(
                "no picture has a text to show: neither does --words TABLE (columns file and text) name one of these "
                "pictures, nor does a prompt quote anything"
            )
        key = {"rendered_text_ned": "ned", "rendered_word_accuracy": "found"}.get(metric, "found_alnum")
        pairs = [
            (float(value), group)
            for item, group in zip(self._items, self._groups, strict=True)
            for value in ([item[key]] if key == "ned" else item[key])
        ]
        if not pairs:
            raise ConfigError("none of the texts has a letter or digit")
        values, groups = zip(*pairs, strict=True)
        detector, judge = self.detector, self.judge
        return Measurement(
            items=make_items(values, groups),
            network=f"{detector.name} + {OWN_READER if judge is None else judge.name}",
            sha256=detector.sha256 if judge is None else f"{detector.sha256} + {judge.sha256}",
            note=f"{len(self._items)} pictures; {self._without_text} of which no text was asked",
        )

    def items(self) -> list[dict[str, Any]]:
        return self._items


def read_picture(detector: LineDetector, judge: TextJudge | None, picture: Picture) -> str:
    """Return all text in a picture, in reading order, joined by spaces.

    Args:
        detector: network that locates the lines.
        judge: network that reads them, word by word if it cannot read lines; None uses the detector's own reading.
        picture: the picture.
    """
    lines = reading_order(detector.detect(picture))
    if judge is None:
        return " ".join(line.text for line in lines)
    pieces = lines if judge.reads_lines else [word for line in lines for word in line.words]
    texts = read_words(judge, [picture], [[TextRegion(box=_box(piece)) for piece in pieces]])
    return " ".join(text for text in texts if text)


def reading_order(lines: Sequence[DetectedLine]) -> list[DetectedLine]:
    """Sort pieces of lines into reading order: lines from top to bottom, pieces from left to right within each.

    A piece belongs to a line if its vertical middle is not below the bottom of the line's first piece. Columns of text
    are not distinguished.
    """
    rows: list[list[DetectedLine]] = []
    for line in sorted(lines, key=_middle):
        if rows and _middle(line) <= _box(rows[-1][0])[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=_box)]


def plain(text: str) -> str:
    """Replace typographic punctuation by ASCII punctuation, and each run of whitespace by one space."""
    return " ".join(text.translate(_PLAIN).split())


def found_words(asked: Sequence[str], read: Sequence[str]) -> list[bool]:
    """Return for each requested word whether it was read; a word that was read once is found only once."""
    remaining = Counter(read)
    found = []
    for word in asked:
        found.append(remaining[word] > 0)
        remaining[word] -= 1
    return found


def _alnum_words(text: str) -> list[str]:
    return [word for word in map(letters, text.split()) if word]


def _box(line: DetectedLine | DetectedWord) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = line.quad.min(0).tolist(), line.quad.max(0).tolist()
    return x0, y0, x1, y1


def _middle(line: DetectedLine) -> float:
    _, top, _, bottom = _box(line)
    return (top + bottom) / 2
