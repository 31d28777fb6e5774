"""Meters: each looks at the originals of a batch once, then at every contestant's reconstructions of them."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Face, Sample, TextRegion
from imtok.evaluation import faces, text
from imtok.evaluation.buckets import BUCKET_NAMES, face_buckets, text_buckets
from imtok.evaluation.contestants import Reconstruction
from imtok.evaluation.metrics import (
    FeatureStatistics,
    codebook_perplexity,
    codebook_usage,
    frechet_distance,
    psnr,
    ssim,
)
from imtok.evaluation.statistics import Items
from imtok.losses.reconstruction import feature_distances
from imtok.pretrained import FeatureNetwork

FRECHET_PARTS = 4
"""Disjoint parts of the set whose distances show how much the number varies: resampling would bias it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One original.

    Attributes:
        sample: with its annotations, in the pixels of `original`.
        group: what a bootstrap draws together.
        original: at its own size.
        prepared: as it enters the tokenizer; the same unless the evaluation has a size.
    """

    sample: Sample
    group: int
    original: Picture
    prepared: Picture


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Its reconstruction by one contestant: what came out, and that at the original's own size."""

    prepared: Reconstruction
    restored: Picture


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric of one contestant on one set.

    Attributes:
        items: one number a picture, word or face; or None, where the set as a whole has one number.
        value: that number.
        network: name of the network behind it.
        sha256: of that network's weights.
        note: what else one has to know to repeat it.
        parts: the same number on disjoint parts of the set.
    """

    items: Items | None = None
    value: float | None = None
    network: str | None = None
    sha256: str | None = None
    note: str | None = None
    parts: list[float] = field(default_factory=list)


class Meter(ABC):
    """One way of looking at reconstructions."""

    @abstractmethod
    def see(self, shown: Sequence[Shown]) -> None:
        """The originals of the next batch."""

    @abstractmethod
    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        """One contestant's reconstructions of that batch."""

    @abstractmethod
    def results(self, name: str) -> dict[str, Measurement]:
        """The contestant's numbers, by the metric's name; empty when there was nothing to measure."""

    def items(self) -> list[dict[str, Any]]:
        """What was looked at one by one, with every contestant's outcome: lines of `items.jsonl`."""
        return []


class PixelMeter(Meter):
    """PSNR and SSIM of each picture, as it enters and leaves the tokenizer."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"psnr": [], "ssim": []})

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch = _pixels([one.prepared for one in shown])
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        after = _pixels([one.prepared.picture for one in drawn])
        for metric, function in (("psnr", psnr), ("ssim", ssim)):
            self._values[name][metric] += function(self._batch, after).tolist()

    def results(self, name: str) -> dict[str, Measurement]:
        note = "uint8, data range 255"
        return {
            metric: Measurement(items=_items(values, self._groups), note=note)
            for metric, values in self._values[name].items()
        }


class PerceptualMeter(Meter):
    """Unweighted distance of VGG16 features of each picture."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self._groups: list[int] = []
        self._values: dict[str, list[float]] = defaultdict(list)

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch = self._maps([one.prepared for one in shown])
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        maps = self._maps([one.prepared.picture for one in drawn])
        self._values[name] += feature_distances(self._batch, maps).tolist()

    @torch.no_grad()
    def _maps(self, pictures: Sequence[Picture]) -> list[Tensor]:
        return self.network(from_uint8(np.stack(pictures)))

    def results(self, name: str) -> dict[str, Measurement]:
        items = _items(self._values[name], self._groups)
        return {"vgg16_distance": Measurement(items=items, network=self.network.name, sha256=self.network.sha256)}


class FrechetMeter(Meter):
    """Fréchet distance between the features of all originals and of all reconstructions."""

    metric = "fd_efficientnet_lite0"

    def __init__(self, network: Any) -> None:
        self.network = network
        self._seen = 0
        self._originals = _parts()
        self._drawn = defaultdict(_parts)

    def see(self, shown: Sequence[Shown]) -> None:
        self._first, self._seen = self._seen, self._seen + len(shown)
        self._add(self._originals, [one.prepared for one in shown])

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        self._add(self._drawn[name], [one.prepared.picture for one in drawn])

    @torch.no_grad()
    def _add(self, parts: list[FeatureStatistics], pictures: list[Picture]) -> None:
        """The whole set comes last, its disjoint parts first; neighbours go to different parts."""
        features = self.network.embed(from_uint8(np.stack(pictures)))
        parts[-1].add(features)
        for part in range(FRECHET_PARTS):
            mine = features[(part - self._first) % FRECHET_PARTS :: FRECHET_PARTS]
            if len(mine):
                parts[part].add(mine)

    def results(self, name: str) -> dict[str, Measurement]:
        if self._seen < 2 * FRECHET_PARTS:
            return {}
        *parts, whole = [frechet_distance(a, b) for a, b in zip(self._originals, self._drawn[name], strict=True)]
        return {
            self.metric: Measurement(
                value=whole,
                parts=parts,
                network=self.network.name,
                sha256=self.network.sha256,
                note=f"{self._seen} pictures, 1280 features at 224 px; biased by the count",
            )
        }


def _parts() -> list[FeatureStatistics]:
    return [FeatureStatistics() for _ in range(FRECHET_PARTS + 1)]


class CodeMeter(Meter):
    """Rate of each picture, and how much of each codebook the set uses."""

    def __init__(self, codebook_sizes: dict[str, tuple[int, ...]]) -> None:
        self._sizes = codebook_sizes
        self._groups: list[int] = []
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._codes: dict[str, list[Tensor]] = defaultdict(list)

    def see(self, shown: Sequence[Shown]) -> None:
        self._groups += [one.group for one in shown]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        for one in drawn:
            if one.prepared.bits_per_pixel is not None:
                self._rates[name].append(one.prepared.bits_per_pixel)
            if one.prepared.codes is not None:
                self._codes[name].append(one.prepared.codes)

    def results(self, name: str) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if self._rates[name]:
            found["bits_per_pixel"] = Measurement(items=_items(self._rates[name], self._groups))
        if self._codes[name]:
            codes, sizes = torch.cat(self._codes[name])[None], self._sizes[name]
            several = len(sizes) > 1
            for metric, values in (
                ("codebook_usage", codebook_usage(codes, sizes)),
                ("codebook_perplexity", codebook_perplexity(codes, sizes)),
            ):
                for index, value in enumerate(values):
                    note = f"{codes.shape[1]} tokens, {sizes[index]} codes"
                    found[f"{metric}_{index}" if several else metric] = Measurement(value=value, note=note)
        return found


class TextMeter(Meter):
    """T-ACC and T-NED by TokBench's rules, and the accuracy of letters and digits alone.

    Scored are words of two characters or more that the judge reads right on the original, each variant by its own rule
    of what is right, in size buckets whose means are averaged.
    """

    def __init__(self, judge: text.TextJudge) -> None:
        self.judge = judge
        self._words: list[tuple[str, TextRegion]] = []  # with the path of the picture
        self._readings: dict[str, list[text.WordReading]] = defaultdict(list)  # in the order of the words
        self._places: list[tuple[int, int | None]] = []  # group and bucket
        self._rules: set[str] = set()

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch: list[list[TextRegion]] = []
        for one in shown:
            words = [word for word in one.sample.words or [] if len(word.text) >= text.MIN_CHARACTERS]
            self._batch.append(words)
            rule = text_buckets(max(one.prepared.shape[:2]))
            self._rules |= {rule.rule} if words else set()
            for word in words:
                ratio = text.size_ratio(word, one.sample.width, one.sample.height)
                self._words.append((one.sample.path, word))
                self._places.append((one.group, rule.index(ratio)))
        self._originals = text.read_words(self.judge, [one.original for one in shown], self._batch)

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        readings = text.read_words(self.judge, [one.restored for one in drawn], self._batch)
        words = [word for words in self._batch for word in words]
        for word, before, after in zip(words, self._originals, readings, strict=True):
            self._readings[name].append(text.WordReading(word.text, before, after))

    def results(self, name: str) -> dict[str, Measurement]:
        readings = self._readings[name]
        exact = [reading.original == reading.text for reading in readings]
        loose = [text.same_letters(reading.original, reading.text) for reading in readings]
        similarity = [text.normalized_edit_similarity(reading.text, reading.reconstruction) for reading in readings]
        found = {
            "text_accuracy": self._measure([float(reading.kept) for reading in readings], exact),
            "text_ned": self._measure(similarity, exact),
            "text_accuracy_alnum": self._measure([float(reading.kept_letters) for reading in readings], loose),
        }
        return {metric: measurement for metric, measurement in found.items() if measurement is not None}

    def items(self) -> list[dict[str, Any]]:
        rows = []
        for index, (path, word) in enumerate(self._words):
            readings = {name: found[index] for name, found in self._readings.items()}
            row = {"kind": "word", "path": path, "box": list(word.box), "text": word.text}
            row["original"] = next(reading.original for reading in readings.values())
            rows.append(row | {"read": {name: reading.reconstruction for name, reading in readings.items()}})
        return rows

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
            items=_items(numbers, groups, buckets, BUCKET_NAMES),
            network=self.judge.name,
            sha256=self.judge.sha256,
            note=note,
        )


class FaceMeter(Meter):
    """Cosine between the judge's embeddings of each face before and after, in size buckets whose means are averaged."""

    def __init__(self, judge: faces.FaceJudge) -> None:
        self.judge = judge
        self._faces: list[tuple[str, Face]] = []  # with the path of the picture
        self._similarities: dict[str, list[float]] = defaultdict(list)  # in the order of the faces
        self._places: list[tuple[int, int]] = []
        self._too_small = 0
        self._rules: set[str] = set()

    def see(self, shown: Sequence[Shown]) -> None:
        self._batch: list[tuple[list[Face], Tensor]] = []
        for one in shown:
            rule, scored = face_buckets(max(one.prepared.shape[:2])), []
            for face in one.sample.faces or []:
                bucket = rule.index(faces.size_ratio(face, one.sample.width, one.sample.height))
                if bucket is None or face.landmarks is None:
                    self._too_small += 1
                    continue
                scored.append(face)
                self._faces.append((one.sample.path, face))
                self._places.append((one.group, bucket))
                self._rules.add(rule.rule)
            self._batch.append((scored, faces.embed_faces(self.judge, one.original, scored)))

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        for (scored, before), one in zip(self._batch, drawn, strict=True):
            after = faces.embed_faces(self.judge, one.restored, scored)
            self._similarities[name] += F.cosine_similarity(before, after).tolist()

    def results(self, name: str) -> dict[str, Measurement]:
        if not self._faces:
            return {}
        groups, buckets = zip(*self._places, strict=True)
        note = f"{self._too_small} faces too small or without landmarks; buckets: {' and '.join(sorted(self._rules))}"
        return {
            "face_similarity": Measurement(
                items=_items(self._similarities[name], groups, buckets, BUCKET_NAMES),
                network=self.judge.name,
                sha256=self.judge.sha256,
                note=note,
            )
        }

    def items(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": "face",
                "path": path,
                "box": list(face.box),
                "similarity": {name: found[index] for name, found in self._similarities.items()},
            }
            for index, (path, face) in enumerate(self._faces)
        ]


def _items(
    values: Sequence[float],
    groups: Sequence[int],
    buckets: Sequence[int] | None = None,
    bucket_names: tuple[str, ...] = ("",),
) -> Items:
    return Items(
        values=np.asarray(values, dtype=np.float64),
        groups=np.asarray(groups, dtype=np.int64),
        buckets=np.zeros(len(values), dtype=np.int64) if buckets is None else np.asarray(buckets, dtype=np.int64),
        bucket_names=bucket_names,
    )


def _pixels(pictures: Sequence[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1)
