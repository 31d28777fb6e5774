"""Are words still legible? A judge that had no part in training reads them before and after (TokBench's rules)."""

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
"""Reads, unless another is named."""
MIN_CHARACTERS = 2
"""Shorter words are not scored, as in the files that TokBench has released."""
CROP_MARGIN = 0.2
"""On each side of a word, as a share of its box's height."""


@runtime_checkable
class TextJudge(Protocol):
    """Reads crops of words.

    Attributes:
        name: role/name in the registry.
        sha256: of its weights.
        reads_lines: whether a crop may hold a whole line.
    """

    name: str
    sha256: str
    reads_lines: bool

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        """What each uint8 RGB crop says."""
        ...


def read_words(judge: TextJudge, pictures: Sequence[Picture], words: Sequence[Sequence[TextRegion]]) -> list[str]:
    """What the judge reads in each word's box, picture by picture.

    Args:
        judge: of the role `text_judge`.
        pictures: that the boxes belong to, or reconstructions of the same sizes.
        words: of each picture; boxes in pixels.
    """
    crops = [crop_word(picture, word) for picture, inside in zip(pictures, words, strict=True) for word in inside]
    return [reading.text for reading in judge.read(crops)] if crops else []


def crop_word(picture: Picture, word: TextRegion) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
    """The upright box around a word with its margin, cut at whole pixels.

    Deviation: TokBench cuts at the box, and so are its own words. Other boxes are tight around the letters, and
    recognizers are trained on looser ones.

    Args:
        picture: the whole picture.
        word: its box in pixels.
    """
    x0, y0, x1, y1 = word.box
    more = margin_of(word) * (y1 - y0)
    return crop(picture, int(x0 - more), int(y0 - more), int(x1 + more), int(y1 + more))


def margin_of(word: TextRegion) -> float:
    """How much more than its box is cut out, as a share of its height."""
    return CROP_MARGIN if word.ratio is None else 0.0


def is_scored(word: TextRegion) -> bool:
    """Whether it is long enough; TokBench's files list what it scores."""
    return len(word.text) >= MIN_CHARACTERS or (word.ratio is not None and bool(word.text))


def size_ratio(word: TextRegion, width: int, height: int) -> float:
    """TokBench's size of a word: the longer side of its box per character, as a share of the picture's longer side.

    The size that its files state goes before.

    Args:
        word: with a text.
        width: of the picture.
        height: of the picture.
    """
    if word.ratio is not None:
        return word.ratio
    x0, y0, x1, y1 = word.box
    return max(x1 - x0, y1 - y0) / (len(word.text) * max(width, height))


def same_letters(a: str, b: str) -> bool:
    """Whether two words agree in their letters and digits, whatever their case and punctuation."""
    return letters(a) == letters(b)


def letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def normalized_edit_similarity(a: str, b: str) -> float:
    """1 minus the edit distance over the longer text's length (T-NED): 1 for equal texts, 0 for nothing in common."""
    longer = max(len(a), len(b))
    return 1.0 if longer == 0 else 1 - edit_distance(a, b) / longer


def edit_distance(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace that makes one text the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, character in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return row[-1]


@dataclass(frozen=True)
class WordReading:
    """One word: what it says, and what the judge read on the original and on a reconstruction."""

    text: str
    original: str
    reconstruction: str

    @property
    def kept(self) -> bool:
        """Read right, to the letter (T-ACC)."""
        return self.reconstruction == self.text

    @property
    def kept_letters(self) -> bool:
        """Read right but for case and punctuation."""
        return same_letters(self.reconstruction, self.text)


@dataclass(frozen=True)
class Words:
    """The words of a batch: the index of each one's picture, its bucket, and what was read."""

    pictures: list[int]
    words: list[TextRegion]
    buckets: list[int | None]
    rules: set[str]
    originals: list[str]
    readings: dict[str, list[str]]


class TextMeter(Meter[Words]):
    """T-ACC and T-NED by TokBench's rules, and the accuracy of letters and digits alone.

    Scored are words of two characters or more that the judge reads right on the original, each variant by its own rule
    of what is right, in size buckets whose means are averaged.

    Args:
        judge: reads the words.
        cache: keeps what was read on originals.
    """

    what = "words"

    def __init__(self, judge: TextJudge, cache: EvaluationCache | None = None) -> None:
        self.judge, self._cache = judge, cache or EvaluationCache()
        self._readings: dict[str, list[WordReading]] = defaultdict(list)  # in the order of the words
        self._places: list[tuple[int, int | None]] = []  # group and bucket
        self._rules: set[str] = set()

    def process(self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]) -> Words:
        words = [[word for word in one.sample.words or [] if is_scored(word)] for one in shown]
        each = [(index, one, word) for index, one in enumerate(shown) for word in words[index]]
        rules = [text_buckets(max(one.prepared.shape[:2])) for one in shown]
        return Words(
            pictures=[index for index, _, _ in each],
            words=[word for _, _, word in each],
            buckets=[
                rules[index].index(size_ratio(word, one.sample.width, one.sample.height)) for index, one, word in each
            ],
            rules={str(rules[index]) for index, _, _ in each},
            originals=self._read_originals(shown, words),
            readings={
                name: read_words(self.judge, [one.restored for one in several], words)
                for name, several in drawn.items()
            },
        )

    def _read_originals(self, shown: Sequence[OriginalPicture], words: Sequence[Sequence[TextRegion]]) -> list[str]:
        keys = keys_of(self.judge, shown, [[(margin_of(word), word.box) for word in inside] for inside in words])

        def ask(places: list[int]) -> list[list[str]]:
            asked = [words[place] for place in places]
            found = iter(read_words(self.judge, [shown[place].original for place in places], asked))
            return [[next(found) for _ in inside] for inside in asked]

        return [text for texts in self._cache.get_or_compute(keys, ask) for text in texts]

    def add(self, found: Words, groups: Sequence[int]) -> None:
        self._rules |= found.rules
        self._places += [(groups[index], bucket) for index, bucket in zip(found.pictures, found.buckets, strict=True)]
        for name, readings in found.readings.items():
            read = zip(found.words, found.originals, readings, strict=True)
            self._readings[name] += [WordReading(word.text, before, after) for word, before, after in read]

    def results(self, name: str) -> dict[str, Measurement]:
        readings = self._readings[name]
        exact = [reading.original == reading.text for reading in readings]
        loose = [bool(letters(r.text)) and same_letters(r.original, r.text) for r in readings]
        similarity = [normalized_edit_similarity(reading.text, reading.reconstruction) for reading in readings]
        found = {
            "text_accuracy": self._measure([float(reading.kept) for reading in readings], exact),
            "text_ned": self._measure(similarity, exact),
            "text_accuracy_alnum": self._measure([float(reading.kept_letters) for reading in readings], loose),
        }
        return {metric: measurement for metric, measurement in found.items() if measurement is not None}

    def items(self, shown: Sequence[OriginalPicture], found: Words) -> list[dict[str, Any]]:
        return [
            {
                "kind": "word",
                **shown[picture].place,
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
        places = zip(values, readable, self._places, strict=True)
        scored = [
            (float(value), group, bucket) for value, read, (group, bucket) in places if read and bucket is not None
        ]
        if not scored:
            return None
        numbers, groups, buckets = zip(*scored, strict=True)
        small = sum(bucket is None for read, (_, bucket) in zip(readable, self._places, strict=True) if read)
        note = f"{len(scored)} of {len(values)} words are scored; {len(values) - sum(readable)} unread on the original"
        note += f", {small} too small; buckets: {' and '.join(sorted(self._rules))}"
        return Measurement(
            items=make_items(numbers, groups, buckets, BUCKET_NAMES),
            network=self.judge.name,
            sha256=self.judge.sha256,
            note=note,
        )
