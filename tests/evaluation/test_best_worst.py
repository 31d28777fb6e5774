"""Best and worst cases: the right ones, with the right parts of the right pictures."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from imtok.data.pictures import encode
from imtok.data.sample import Sample, TextRegion
from imtok.evaluation.best_worst import BestWorstCases, Case, part_of, value_of
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.meters import OriginalPicture, ReconstructedPicture
from imtok.evaluation.reconstructors import Reconstruction
from imtok.evaluation.report import _embed
from imtok.evaluation.text import TextMeter
from imtok.pretrained import Reading


def shown(row: int) -> OriginalPicture:
    picture = np.full((40, 40, 3), row, dtype=np.uint8)
    sample = Sample(image=b"", path=f"{row}.png", width=40, height=40)
    return OriginalPicture(row=row, sample=sample, original=picture, prepared=picture, content=picture)


def drawn(brightness: int) -> ReconstructedPicture:
    picture = np.full((40, 40, 3), brightness, dtype=np.uint8)
    return ReconstructedPicture(output=Reconstruction(picture), content=picture, restored=picture)


def face(row: int, first: float, second: float) -> dict[str, Any]:
    place = {"kind": "face", "row": row, "path": f"{row}.png", "box": [10.0, 5.0, 30.0, 35.0]}
    return place | {"similarity": {"first": first, "second": second}}


def word(row: int, text: str, original: str, first: str, second: str) -> dict[str, Any]:
    place = {"kind": "word", "row": row, "path": f"{row}.png", "box": [10.0, 10.0, 30.0, 20.0]}
    return place | {"text": text, "original": original, "read": {"first": first, "second": second}}


def test_the_largest_gains_and_losses_are_kept_over_batches() -> None:
    gains = [0.1, -0.4, 0.3, 0.0, -0.1, 0.2, -0.3, 0.3, -0.2, 0.05]
    keeper = BestWorstCases("set", ["first", "second"])
    for start in (0, 5):
        rows = range(start, start + 5)
        pictures = {"first": [drawn(100 + row) for row in rows], "second": [drawn(200 + row) for row in rows]}
        keeper.see([shown(row) for row in rows], pictures, [face(row, 0.5, 0.5 + gains[row]) for row in rows])
    cases = [case for case in keeper.cases() if case.tokenizer == "second"]
    assert [case.item["row"] for case in cases] == [2, 7, 5, 1, 6, 8]  # of equal ones the first first
    assert [case.value for case in cases] == pytest.approx([0.3, 0.3, 0.2, -0.4, -0.3, -0.2])
    for case in cases:
        row = case.item["row"]
        assert {(int(p[0, 0, 0]), p.shape) for p in (case.original, *case.reconstructions.values())} == {
            (brightness + row, (30, 20, 3)) for brightness in (0, 100, 200)
        }
        assert case.reconstructions["first"].base is None  # a crop that kept its picture alive would fill the memory
        assert (case.baseline, case.better, case.data) == ("first", case.value > 0, "set")


def test_the_first_reconstructor_has_its_own_best_and_worst() -> None:
    keeper = BestWorstCases("set", ["first", "second"])
    cosines = [0.5, 0.9, 0.1, 0.9, 0.2, 0.7, 0.3, 0.95]
    pictures = {"first": [drawn(100 + row) for row in range(8)]}  # the second has failed
    keeper.see([shown(row) for row in range(8)], pictures, [face(row, one, 0.0) for row, one in enumerate(cosines)])
    assert [(case.item["row"], case.value, case.better) for case in keeper.cases()] == [
        *((7, 0.95, True), (1, 0.9, True), (3, 0.9, True)),
        *((2, 0.1, False), (4, 0.2, False), (6, 0.3, False)),
    ]
    for case in keeper.cases():
        assert (case.tokenizer, case.baseline, list(case.reconstructions)) == ("first", None, ["first"])
        assert int(case.reconstructions["first"][0, 0, 0]) == 100 + case.item["row"]


def test_a_batch_brings_only_what_goes_beyond_the_ones_before() -> None:
    keeper = BestWorstCases("set", ["first", "second"])
    counts = []

    def of_second(some: BestWorstCases) -> list[Case]:
        return [case for case in some.cases() if case.tokenizer == "second"]

    for row, gain in enumerate((0.2, 0.3, 0.1, 0.1, 0.25, -0.1)):
        longer = keeper.copy()
        longer.see([shown(row)], {"first": [drawn(1)], "second": [drawn(2)]}, [face(row, 0.5, 0.5 + gain)])
        new = [case for case in longer.cases() if case not in keeper.cases()]
        counts.append(sum(case.tokenizer == "second" for case in new))
        for case in new:
            keeper.add(case)
    assert counts == [1, 1, 1, 0, 1, 1]
    assert [case.item["row"] for case in of_second(keeper)] == [1, 4, 0, 5]


@pytest.mark.parametrize("ratio", [None, 0.03])
def test_a_word_is_shown_as_the_judge_saw_it(ratio: float | None) -> None:
    """TokBench's words, whose size is stated, are cut out without a margin."""
    seen: list[np.ndarray] = []

    class Judge:
        name, sha256, reads_lines = "text_judge/fake", "1", True

        def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
            seen.extend(crops)
            return [Reading("Exit", 1.0) for _ in crops]

    word = TextRegion(box=(10.0, 8.0, 30.0, 18.0), text="Exit", ratio=ratio)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    one = replace(shown(0), original=picture, sample=replace(shown(0).sample, words=[word]))
    meter = TextMeter(Judge())
    (item,) = meter.items([one], meter.process([one], {"first": [drawn(100)]}))
    assert seen[0].shape == ((10, 20, 3) if ratio else (14, 24, 3))
    assert (part_of(item, picture) == seen[0]).all()


@pytest.mark.parametrize("box", [(10.0, 10.0, 20.0, 10.4), (-9.0, 50.0, -3.0, 60.0), (35.0, 0.2, 90.0, 0.3)])
def test_thin_and_outlying_faces_can_be_shown(box: tuple[float, ...]) -> None:
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    crop = part_of(face(0, 0.5, 0.6) | {"box": list(box)}, picture)
    assert min(crop.shape[:2]) == 1
    image = Image.open(io.BytesIO(base64.b64decode(_embed(crop, height=112).partition(",")[2])))
    assert image.height == 112


def test_gains_are_those_of_the_scores() -> None:
    assert value_of(word(0, "Exit", "Exit", "Ex", "Exit"), "second", "first") == pytest.approx(0.5)
    assert value_of(word(0, "Exit", "Exit", "Exit", ""), "second", "first") == -1
    assert value_of(word(0, "Exit", "Exit", "Ex", "Exit"), "first", None) == pytest.approx(0.5)
    assert value_of(word(0, "Exit", "exit", "Ex", "Exit"), "second", "first") is None  # unread on the original
    assert value_of(face(0, 0.9, 0.7), "second", "first") == pytest.approx(-0.2)
    assert value_of(face(0, 0.9, 0.7), "first", None) == 0.9
    equal = {"kind": "picture", "row": 0, "path": "x", "psnr": {"first": 20.0, "second": None}}
    assert value_of(equal, "second", "first") is None  # infinite


def test_an_evaluation_brings_its_cases_and_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(8):
        picture = np.ascontiguousarray(data.coffee()[40 * index : 40 * index + 48, 60 * index : 60 * index + 64])
        (tmp_path / f"photos/{index}.png").write_bytes(encode(picture))
    found = evaluate(["jpeg:40", "webp:40"], tmp_path / "photos", tmp_path / "out", metrics=["psnr"])
    lines = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    gains = {line["path"]: line["psnr"]["webp:40"] - line["psnr"]["jpeg:40"] for line in lines}
    assert len(gains) == 8
    best, worst = sorted((g for g in gains.values() if g > 0), reverse=True), sorted(g for g in gains.values() if g < 0)
    compared = [case for case in found.cases if case.baseline == "jpeg:40"]
    assert [case.value for case in compared] == [*best[:3], *worst[:3]]
    assert all(case.value == gains[case.item["path"]] for case in compared)
    assert {case.tokenizer for case in found.cases} == {"jpeg:40", "webp:40"}  # checks are no reconstructors
    alone = sorted(line["psnr"]["jpeg:40"] for line in lines)
    by_itself = [case.value for case in found.cases if case.tokenizer == "jpeg:40"]
    assert by_itself == [*alone[:-4:-1], *alone[:3]]
    page = (tmp_path / "out/report.html").read_text()
    assert f"{compared[0].value:+.2f} dB PSNR" in page
    assert f"{by_itself[0]:.2f} dB PSNR" in page
