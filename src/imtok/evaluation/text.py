"""Legibility of words: a judge that was not used in training reads originals and reconstructions (TokBench's rules)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from imtok.data.pictures import Picture, crop
from imtok.data.sample import TextRegion
from imtok.evaluation.buckets import BUCKET_NAMES, text_buckets
from imtok.evaluation.cache import EvaluationCache, keys_of
from imtok.evaluation.meters import Measurement, Meter, OriginalPicture, ReconstructedPicture, make_items
from imtok.pretrained import Reading

TEXT_JUDGE = "text_judge/easyocr"
"""Default text judge."""
MIN_CHARACTERS = 2
"""Minimum length of scored words, as in the files released by TokBench."""
CROP_MARGIN = 0.2
"""Margin on each side of a cropped word, as a share of its box's height."""


@runtime_checkable
class TextJudge(Protocol):
    """Reads crops of words.

    Attributes:
        name: role/name in the registry.
        sha256: hash of its weights.
        reads_lines: whether a crop may contain a whole line.
    """

    name: str
    sha256: str
    reads_lines: bool

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        """Return the reading of each uint8 RGB crop."""
        ...


def read_words(judge: TextJudge, pictures: Sequence[Picture], words: Sequence[Sequence[TextRegion]]) -> list[str]:
    """Return the judge's reading of each word's box, in one list, picture by picture.

    Args:
        judge: network of the role `text_judge`.
        pictures: the pictures that contain the words, or their reconstructions at the same sizes.
        words: words of each picture, with boxes in pixels.
    """
    crops = [
        crop_word(picture, word)
        for picture, picture_words in zip(pictures, words, strict=True)
        for word in picture_words
    ]
    return [reading.text for reading in judge.read(crops)] if crops else []


def crop_word(picture: Picture, word: TextRegion) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
    """Crop the upright box around a word, enlarged by its margin, at whole pixels.

    Deviation: TokBench crops at the box. Here only words from TokBench's files are cropped this way; other boxes get a
    margin, because they are tight around the letters, while recognizers are trained on looser crops.

    Args:
        picture: the whole picture.
        word: the word, with its box in pixels.
    """
    x0, y0, x1, y1 = word.box
    margin = margin_of(word) * (y1 - y0)
    return crop(picture, int(x0 - margin), int(y0 - margin), int(x1 + margin), int(y1 + margin))


def margin_of(word: TextRegion) -> float:
    """Return the margin by which a word's box is enlarged on each side, as a share of the box's height."""
    return CROP_MARGIN if word.ratio is None else 0.0


def is_scored(word: TextRegion) -> bool:
    """Return whether a word is scored: if it is long enough, or a non-empty word from TokBench's files."""
    return len(word.text) >= MIN_CHARACTERS or (word.ratio is not None and bool(word.text))


def size_ratio(word: TextRegion, width: int, height: int) -> float:
    """Return TokBench's size of a word: the longer side of its box per character over the picture's longer side.

    If TokBench's files state the size, that value is returned instead.

    Args:
        word: the word; its text must not be empty.
        width: width of the picture.
        height: height of the picture.
    """
    if word.ratio is not None:
        return word.ratio
    x0, y0, x1, y1 = word.box
    return max(x1 - x0, y1 - y0) / (len(word.text) * max(width, height))


def same_letters(a: str, b: str) -> bool:
    """Return whether two words agree in their letters and digits, ignoring case and punctuation."""
    return letters(a) == letters(b)


def letters(text: str) -> str:
    """Return only the letters and digits of a text, with case folded."""
    return "".join(c for c in text.casefold() if c.isalnum())


def normalized_edit_similarity(a: str, b: str) -> float:
    """Return 1 - edit distance / length of the longer text (T-NED): 1 for equal texts, 0 for nothing in common."""
    longer = max(len(a), len(b))
    return 1.0 if longer == 0 else 1 - edit_distance(a, b) / longer


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance: the minimum number of insertions, deletions and replacements of characters."""
    row = list(range(len(b) + 1))
    for i, character in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return row[-1]


@dataclass(frozen=True)
class WordReading:
    """A word's text, and the judge's readings on the original and on a reconstruction."""

    text: str
    original: str
    reconstruction: str

    @property
    def kept(self) -> bool:
        """Whether the reconstruction is read exactly as the text (T-ACC)."""
        return self.reconstruction == self.text

    @property
    def kept_letters(self) -> bool:
        """Whether the reconstruction is read as the text, ignoring case and punctuation."""
        return same_letters(self.reconstruction, self.text)


@dataclass(frozen=True)
class Words:
    """The words of a batch and their readings.

    Attributes:
        pictures: index in the batch of each word's picture.
        words: the words.
        buckets: size bucket of each word; None if it is below the smallest bucket.
        rules: descriptions of the bucket limits that were applied.
        originals: reading of each word on the original.
        readings: readings on the reconstructions, by reconstructor.
    """

    pictures: list[int]
    words: list[TextRegion]
    buckets: list[int | None]
    rules: set[str]
    originals: list[str]
    readings: dict[str, list[str]]


class TextMeter(Meter[Words]):
    """T-ACC and T-NED by TokBench's rules, and the accuracy of letters and digits alone.

    Only words that pass `is_scored` and that the judge reads correctly on the original are scored; what is correct is
    decided by each metric's own rule, exactly or by letters and digits. A score is the mean of size-bucket means.

    Args:
        judge: network that reads the words.
        cache: cache of the readings of originals.
    """

    what = "words"

    def __init__(self, judge: TextJudge, cache: EvaluationCache | None = None) -> None:
        self.judge, self._cache = judge, cache or EvaluationCache()
        self._readings: dict[str, list[WordReading]] = defaultdict(list)  # in the order of the words
        self._groups_and_buckets: list[tuple[int, int | None]] = []
        self._rules: set[str] = set()

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> Words:
        words = [[word for word in picture.sample.words or [] if is_scored(word)] for picture in originals]
        entries = [(index, picture, word) for index, picture in enumerate(originals) for word in words[index]]
        rules = [text_buckets(max(picture.prepared.shape[:2])) for picture in originals]
        return Words(
            pictures=[index for index, _, _ in entries],
            words=[word for _, _, word in entries],
            buckets=[
                rules[index].index(size_ratio(word, picture.sample.width, picture.sample.height))
                for index, picture, word in entries
            ],
            rules={str(rules[index]) for index, _, _ in entries},
            originals=self._read_originals(originals, words),
            readings={
                name: read_words(self.judge, [picture.restored for picture in pictures], words)
                for name, pictures in reconstructions.items()
            },
        )

    def _read_originals(self, originals: Sequence[OriginalPicture], words: Sequence[Sequence[TextRegion]]) -> list[str]:
        keys = keys_of(
            self.judge, originals, [[(margin_of(word), word.box) for word in picture_words] for picture_words in words]
        )

        def read(indices: list[int]) -> list[list[str]]:
            unread = [words[index] for index in indices]
            readings = iter(read_words(self.judge, [originals[index].original for index in indices], unread))
            return [[next(readings) for _ in picture_words] for picture_words in unread]

        return [text for texts in self._cache.get_or_compute(keys, read) for text in texts]

    def add(self, found: Words, groups: Sequence[int]) -> None:
        self._rules |= found.rules
        self._groups_and_buckets += [
            (groups[index], bucket) for index, bucket in zip(found.pictures, found.buckets, strict=True)
        ]
        for name, readings in found.readings.items():
            triples = zip(found.words, found.originals, readings, strict=True)
            self._readings[name] += [WordReading(word.text, before, after) for word, before, after in triples]

    def results(self, name: str) -> dict[str, Measurement]:
        readings = self._readings[name]
        exact = [reading.original == reading.text for reading in readings]
        same_alnum = [bool(letters(r.text)) and same_letters(r.original, r.text) for r in readings]
        similarity = [normalized_edit_similarity(reading.text, reading.reconstruction) for reading in readings]
        found = {
            "text_accuracy": self._measure([float(reading.kept) for reading in readings], exact),
            "text_ned": self._measure(similarity, exact),
            "text_accuracy_alnum": self._measure([float(reading.kept_letters) for reading in readings], same_alnum),
        }
        return {metric: measurement for metric, measurement in found.items() if measurement is not None}

    def items(self, originals: Sequence[OriginalPicture], found: Words) -> list[dict[str, Any]]:
        return [
            {
                "kind": "word",
                **originals[picture].place,
                "box": list(word.box),
                "text": word.text,
                **({} if word.ratio is None else {"ratio": word.ratio}),
                "original": original,
                "read": {name: readings[index] for name, readings in found.readings.items()},
            }
            for index, (picture, word, original) in enumerate(
                zip(found.pictures, found.words, found.originals, strict=True)
            )
        ]

    def _measure(self, values: Sequence[float], readable: Sequence[bool]) -> Measurement | None:
        entries = zip(values, readable, self._groups_and_buckets, strict=True)
        scored = [
            (float(value), group, bucket) for value, read, (group, bucket) in entries if read and bucket is not None
        ]
        if not scored:
            return None
        numbers, groups, buckets = zip(*scored, strict=True)
        small = sum(
            bucket is None for read, (_, bucket) in zip(readable, self._groups_and_buckets, strict=True) if read
        )
        note = f"{len(scored)} of {len(values)} words are scored; {len(values) - sum(readable)} unread on the original"
        note += f", {small} too small; buckets: {' and '.join(sorted(self._rules))}"
        return Measurement(
            items=make_items(numbers, groups, buckets, BUCKET_NAMES),
            network=self.judge.name,
            sha256=self.judge.sha256,
            note=note,
        )
