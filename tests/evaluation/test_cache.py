"""Judge outputs for originals are not computed twice, and caching them changes no score."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from imtok.data.pictures import encode
from imtok.data.sample import Face, InMemoryDataset, Sample, TextRegion
from imtok.evaluation.cache import EvaluationCache, keys_of
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.meters import OriginalPicture
from imtok.evaluation.text import crop_word
from imtok.pretrained import ExtractedFeatures, FeatureExtractor, Reading

POINTS = ((30.0, 30.0), (50.0, 30.0), (40.0, 40.0), (32.0, 50.0), (48.0, 50.0))
TEMPLATE = torch.tensor([(10.0, 12.0), (22.0, 12.0), (16.0, 18.0), (11.0, 23.0), (21.0, 23.0)])
METRICS = ["psnr", "text_accuracy", "text_ned", "face_similarity", "fd_efficientnet_lite0"]


def make_dataset(count: int = 12) -> InMemoryDataset:
    """Return crops of a photograph, each with a word and every second one with a face."""
    pictures = [np.ascontiguousarray(data.coffee()[20 * i : 20 * i + 64, 30 * i : 30 * i + 80]) for i in range(count)]
    word = TextRegion(box=(4.0, 40.0, 40.0, 52.0), text="word")
    face = Face(box=(20.0, 20.0, 60.0, 60.0), landmarks=POINTS)
    return InMemoryDataset(
        Sample(image=encode(picture), path=f"{i}.png", width=80, height=64, words=[word], faces=[face] * (i % 2))
        for i, picture in enumerate(pictures)
    )


class Reader:
    """Reads the words of the originals correctly, and outputs the mean brightness of any other crop."""

    name, sha256 = "text_judge/table", "1" * 64
    reads_lines = True

    def __init__(self) -> None:
        from imtok.data.pictures import decode

        crops = [crop_word(decode(sample.image), word) for sample in make_dataset() for word in sample.words or []]
        self.known = {crop.tobytes() for crop in crops}
        self.originals = self.others = 0

    def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
        known = [crop.tobytes() in self.known for crop in crops]
        self.originals += sum(known)
        self.others += len(known) - sum(known)
        return [Reading("word" if k else f"w{crop.mean():.0f}rd", 1.0) for k, crop in zip(known, crops, strict=True)]


class Embedder:
    name, sha256, input_size, template = "face_judge/mean", "2" * 64, (32, 32), TEMPLATE

    def __init__(self) -> None:
        self.faces = 0

    def embed(self, images: Tensor) -> Tensor:
        self.faces += len(images)
        return F.avg_pool2d(images, 4).flatten(1)


class BatchDependentExtractor(FeatureExtractor):
    """Outputs features whose last digits depend on the batch."""

    name, sha256 = "vision/efficientnet_lite0", "3" * 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.pictures = 0

    def extract_features(self, images: Tensor) -> ExtractedFeatures:
        self.pictures += len(images)
        pooled = self.weight * F.adaptive_avg_pool2d(images, 2).flatten(1) + 1e-6 * images.mean()
        return ExtractedFeatures(pooled, pooled, pooled)


Networks = tuple[Reader, Embedder, BatchDependentExtractor]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Networks:
    reader, embedder, extractor = Reader(), Embedder(), BatchDependentExtractor()
    by_name = {"text_judge/easyocr": reader, "face_judge/dlib": embedder, BatchDependentExtractor.name: extractor}
    monkeypatch.setattr("imtok.pretrained.load", by_name.__getitem__)
    return reader, embedder, extractor


def test_second_evaluation_reuses_cached_outputs_and_gives_equal_scores(
    judges: Networks, tmp_path: Path, own_answers: Path
) -> None:
    reader, embedder, extractor = judges

    def run(out: str, count: int | None = None, **options: Any) -> tuple[int, int, int, int]:
        reader.originals = reader.others = embedder.faces = extractor.pictures = 0
        pictures = {"photos": make_dataset()}
        evaluate(
            ["jpeg:30", "webp:50"], pictures, tmp_path / out, metrics=METRICS, count=count, checks=False, **options
        )
        return reader.originals, reader.others, embedder.faces, extractor.pictures

    assert run("without", cache=False) == (12, 24, 6 * 3, 12 * 3)
    assert not own_answers.exists()
    assert run("few", count=4)[0] == 4
    assert run("first")[0] == 8  # the other four are in the cache
    assert run("second") == (0, 24, 6 * 2, 12 * 2)
    for file in ("metrics.json", "items.jsonl"):
        files = [(tmp_path / out / file).read_bytes() for out in ("without", "first", "second")]
        assert files[0] == files[1] == files[2]
    scores = json.loads((tmp_path / "second" / "metrics.json").read_text())["results"][0]["metrics"]
    assert scores["text_accuracy"]["value"] == 0
    assert 0 < scores["text_ned"]["value"] < 1
    assert 0 < scores["face_similarity"]["value"] < 1


def test_only_missing_outputs_are_computed_and_order_is_kept(tmp_path: Path) -> None:
    computed: list[list[int]] = []

    def compute(positions: list[int]) -> list[str]:
        computed.append(positions)
        return [f"answer {position}" for position in positions]

    with EvaluationCache(tmp_path / "new" / "answers.sqlite") as cache:
        assert cache.get_or_compute(["a", None, "b"], compute) == ["answer 0", "answer 1", "answer 2"]
    with EvaluationCache(tmp_path / "new" / "answers.sqlite") as cache:
        assert cache.get_or_compute(["b", "c", None, "a"], compute) == ["answer 2", "answer 1", "answer 2", "answer 0"]
        assert cache.get_or_compute(["c"], compute) == ["answer 1"]
    assert computed == [[0, 1, 2], [1, 2]]


def test_outputs_are_computed_without_a_usable_cache_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database at all " * 100)
    (tmp_path / "a file").write_bytes(b"")
    for file in (None, broken, tmp_path / "a file" / "answers.sqlite"):
        with EvaluationCache(file) as cache:
            assert cache.get_or_compute(["a"], lambda positions: [1]) == [1]
            assert cache.get_or_compute(["a"], lambda positions: [2]) == [2]
    assert broken.read_bytes().startswith(b"no database")


def test_oldest_outputs_beyond_the_limit_are_deleted(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    keys = [f"key {index}" for index in range(10)]
    with EvaluationCache(file, limit=300) as cache:  # an output takes 98 letters and two quotation marks
        for key in keys:
            cache.get_or_compute([key], lambda positions: ["x" * 98])
    missing: list[int] = []
    with EvaluationCache(file, limit=300) as cache:
        cache.get_or_compute(keys, lambda positions: missing.extend(positions) or ["x"] * len(positions))
    assert missing == [0, 1, 2, 3, 4, 5, 6]


class Judge:
    def __init__(self, name: str, sha256: str) -> None:
        self.name, self.sha256 = name, sha256


def make_key(name: str, sha256: str, image: bytes, regions: list[list[int]], width: int = 20) -> str | None:
    picture = np.zeros((16, width, 3), dtype=np.uint8)
    sample = Sample(image=image, path="x", width=width, height=16)
    original = OriginalPicture(row=0, sample=sample, original=picture, prepared=picture, content=picture)
    return keys_of(Judge(name, sha256), [original], [regions])[0]


def test_key_depends_on_judge_weights_picture_and_regions() -> None:
    keys = [
        make_key("judge", "1", b"picture", [[0, 0, 5, 5]]),
        make_key("other", "1", b"picture", [[0, 0, 5, 5]]),
        make_key("judge", "2", b"picture", [[0, 0, 5, 5]]),
        make_key("judge", "1", b"other", [[0, 0, 5, 5]]),
        make_key("judge", "1", b"picture", [[0, 0, 5, 6]]),
        make_key("judge", "1", b"picture", [[0, 0, 5, 5], [0, 0, 5, 5]]),
        make_key("judge", "1", b"picture", [[0, 0, 5, 5]], width=21),
    ]
    assert len(set(keys)) == 7
    assert make_key("judge", "1", b"picture", [[0, 0, 5, 5]]) == keys[0]
    assert make_key("judge", "", b"picture", [[0, 0, 5, 5]]) is None
    assert make_key("judge", "1", b"picture", []) is None
