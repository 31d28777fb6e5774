"""Does a generated picture show the words that were asked for? A detector finds the lines, a judge reads them."""

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
"""Curly quotation marks, dashes and the ellipsis as a typewriter has them."""

OWN_READER = "text_features/ppocrv6"
"""What the detector reads with by itself; its file is one of the detector's two, which have one hash together."""


@runtime_checkable
class LineDetector(Protocol):
    """Finds lines of text.

    Attributes:
        name: role/name in the registry.
        sha256: of its weights.
    """

    name: str
    sha256: str

    def detect(self, image: np.ndarray) -> list[DetectedLine]:
        """The lines in an RGB picture."""
        ...


class RenderedTextMeter(GeneratedMeter[list[dict[str, Any] | None]]):
    """Whole text and single words against what was asked for (InsightTok, F.2.2).

    `rendered_text_ned` is eq. 17 between all that is read, line by line, and the text asked for.
    `rendered_word_accuracy` is the share of its words that are among those read, wherever they stand, each as often as
    it was read. Typographic quotation marks, dashes and ellipses count as the plain ones, which is all that readers of
    English know. Pictures of which no text was asked are not scored.

    Deviation: InsightTok reads with another OCR model (its reference 40); ours says which network it is.

    Args:
        detector: of the role `text_detector`; it says where lines are.
        judge: reads them; None takes what the detector reads by itself, through the network that text losses use.
    """

    metrics = ("rendered_text_ned", "rendered_word_accuracy", "rendered_word_accuracy_alnum")

    def __init__(self, detector: LineDetector, judge: TextJudge | None) -> None:
        self.detector, self.judge = detector, judge
        self._items: list[dict[str, Any]] = []
        self._groups: list[int] = []
        self._without = 0

    def process(self, batch: Sequence[Generated]) -> list[dict[str, Any] | None]:
        """A line of `items.jsonl` for each picture; None where no text was asked of it."""
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
            "found_alnum": found_words(*(_letters(words) for words in (text, read))),
        }

    def add(self, found: list[dict[str, Any] | None], groups: Sequence[int]) -> None:
        for item, group in zip(found, groups, strict=True):
            if item is None:
                self._without += 1
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
            note=f"{len(self._items)} pictures; {self._without} of which no text was asked",
        )

    def items(self) -> list[dict[str, Any]]:
        return self._items


def read_picture(detector: LineDetector, judge: TextJudge | None, picture: Picture) -> str:
    """All text in a picture, in reading order, joined by spaces.

    Args:
        detector: finds lines.
        judge: reads them, word by word if it reads no lines; None takes what the detector reads.
        picture: to be read.
    """
    lines = reading_order(detector.detect(picture))
    if judge is None:
        return " ".join(line.text for line in lines)
    pieces = lines if judge.reads_lines else [word for line in lines for word in line.words]
    read = read_words(judge, [picture], [[TextRegion(box=_box(piece)) for piece in pieces]])
    return " ".join(text for text in read if text)


def reading_order(lines: Sequence[DetectedLine]) -> list[DetectedLine]:
    """Pieces of lines from left to right, lines from top to bottom; columns are not told apart.

    A piece stands in a line when its middle is no lower than the bottom of the line's first piece.
    """
    rows: list[list[DetectedLine]] = []
    for line in sorted(lines, key=_middle):
        if rows and _middle(line) <= _box(rows[-1][0])[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=_box)]


def plain(text: str) -> str:
    """With typewriter's punctuation, and one space wherever there is any."""
    return " ".join(text.translate(_PLAIN).split())


def found_words(asked: Sequence[str], read: Sequence[str]) -> list[bool]:
    """Which of the words asked for were read; a word that was read once is found once."""
    left = Counter(read)
    found = []
    for word in asked:
        found.append(left[word] > 0)
        left[word] -= 1
    return found


def _letters(text: str) -> list[str]:
    return [word for word in map(letters, text.split()) if word]


def _box(line: DetectedLine | DetectedWord) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = line.quad.min(0).tolist(), line.quad.max(0).tolist()
    return x0, y0, x1, y1


def _middle(line: DetectedLine) -> float:
    _, top, _, bottom = _box(line)
    return (top + bottom) / 2
