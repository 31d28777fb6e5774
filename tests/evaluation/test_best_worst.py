"""Best and worst cases: which items are kept, and which part of which picture is shown for each."""

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


def make_original(row: int) -> OriginalPicture:
    picture = np.full((40, 40, 3), row, dtype=np.uint8)
    sample = Sample(image=b"", path=f"{row}.png", width=40, height=40)
    return OriginalPicture(row=row, sample=sample, original=picture, prepared=picture, content=picture)


def make_reconstruction(brightness: int) -> ReconstructedPicture:
    picture = np.full((40, 40, 3), brightness, dtype=np.uint8)
    return ReconstructedPicture(output=Reconstruction(picture), content=picture, restored=picture)


def face_item(row: int, first: float, second: float) -> dict[str, Any]:
    fields = {"kind": "face", "row": row, "path": f"{row}.png", "box": [10.0, 5.0, 30.0, 35.0]}
    return fields | {"similarity": {"first": first, "second": second}}


def word_item(row: int, text: str, original: str, first: str, second: str) -> dict[str, Any]:
    fields = {"kind": "word", "row": row, "path": f"{row}.png", "box": [10.0, 10.0, 30.0, 20.0]}
    return fields | {"text": text, "original": original, "read": {"first": first, "second": second}}


def test_keeps_the_largest_gains_and_losses_across_batches() -> None:
    gains = [0.1, -0.4, 0.3, 0.0, -0.1, 0.2, -0.3, 0.3, -0.2, 0.05]
    keeper = BestWorstCases("set", ["first", "second"])
    for start in (0, 5):
        rows = range(start, start + 5)
        pictures = {
            "first": [make_reconstruction(100 + row) for row in rows],
            "second": [make_reconstruction(200 + row) for row in rows],
        }
        keeper.see(
            [make_original(row) for row in rows], pictures, [face_item(row, 0.5, 0.5 + gains[row]) for row in rows]
        )
    cases = [case for case in keeper.cases() if case.tokenizer == "second"]
    assert [case.item["row"] for case in cases] == [2, 7, 5, 1, 6, 8]  # among equal gains, the earlier ones
    assert [case.value for case in cases] == pytest.approx([0.3, 0.3, 0.2, -0.4, -0.3, -0.2])
    for case in cases:
        row = case.item["row"]
        assert {(int(p[0, 0, 0]), p.shape) for p in (case.original, *case.reconstructions.values())} == {
            (brightness + row, (30, 20, 3)) for brightness in (0, 100, 200)
        }
        assert case.reconstructions["first"].base is None  # a view would keep its whole picture in memory
        assert (case.baseline, case.better, case.data) == ("first", case.value > 0, "set")


def test_first_reconstructor_is_ranked_by_its_own_outcomes() -> None:
    keeper = BestWorstCases("set", ["first", "second"])
    cosines = [0.5, 0.9, 0.1, 0.9, 0.2, 0.7, 0.3, 0.95]
    pictures = {"first": [make_reconstruction(100 + row) for row in range(8)]}  # the second reconstructor has failed
    keeper.see(
        [make_original(row) for row in range(8)],
        pictures,
        [face_item(row, cosine, 0.0) for row, cosine in enumerate(cosines)],
    )
    assert [(case.item["row"], case.value, case.better) for case in keeper.cases()] == [
        *((7, 0.95, True), (1, 0.9, True), (3, 0.9, True)),
        *((2, 0.1, False), (4, 0.2, False), (6, 0.3, False)),
    ]
    for case in keeper.cases():
        assert (case.tokenizer, case.baseline, list(case.reconstructions)) == ("first", None, ["first"])
        assert int(case.reconstructions["first"][0, 0, 0]) == 100 + case.item["row"]


def test_batch_adds_only_cases_that_exceed_earlier_ones() -> None:
    keeper = BestWorstCases("set", ["first", "second"])
    counts = []

    def cases_of_second(kept: BestWorstCases) -> list[Case]:
        return [case for case in kept.cases() if case.tokenizer == "second"]

    for row, gain in enumerate((0.2, 0.3, 0.1, 0.1, 0.25, -0.1)):
        extended = keeper.copy()
        extended.see(
            [make_original(row)],
            {"first": [make_reconstruction(1)], "second": [make_reconstruction(2)]},
            [face_item(row, 0.5, 0.5 + gain)],
        )
        new = [case for case in extended.cases() if case not in keeper.cases()]
        counts.append(sum(case.tokenizer == "second" for case in new))
        for case in new:
            keeper.add(case)
    assert counts == [1, 1, 1, 0, 1, 1]
    assert [case.item["row"] for case in cases_of_second(keeper)] == [1, 4, 0, 5]


@pytest.mark.parametrize("ratio", [None, 0.03])
def test_word_crop_equals_the_judge_input(ratio: float | None) -> None:
    """TokBench's words, whose size is stated, are cropped without a margin."""
    judge_inputs: list[np.ndarray] = []

    class Judge:
        name, sha256, reads_lines = "text_judge/fake", "1", True

        def read(self, crops: Sequence[np.ndarray]) -> list[Reading]:
            judge_inputs.extend(crops)
            return [Reading("Exit", 1.0) for _ in crops]

    word = TextRegion(box=(10.0, 8.0, 30.0, 18.0), text="Exit", ratio=ratio)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    original = replace(make_original(0), original=picture, sample=replace(make_original(0).sample, words=[word]))
    meter = TextMeter(Judge())
    (item,) = meter.items([original], meter.process([original], {"first": [make_reconstruction(100)]}))
    assert judge_inputs[0].shape == ((10, 20, 3) if ratio else (14, 24, 3))
    assert (part_of(item, picture) == judge_inputs[0]).all()


@pytest.mark.parametrize("box", [(10.0, 10.0, 20.0, 10.4), (-9.0, 50.0, -3.0, 60.0), (35.0, 0.2, 90.0, 0.3)])
def test_thin_and_out_of_bounds_faces_have_nonempty_crops(box: tuple[float, ...]) -> None:
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    crop = part_of(face_item(0, 0.5, 0.6) | {"box": list(box)}, picture)
    assert min(crop.shape[:2]) == 1
    image = Image.open(io.BytesIO(base64.b64decode(_embed(crop, height=112).partition(",")[2])))
    assert image.height == 112


def test_value_is_the_outcome_or_its_difference_from_the_baseline() -> None:
    assert value_of(word_item(0, "Exit", "Exit", "Ex", "Exit"), "second", "first") == pytest.approx(0.5)
    assert value_of(word_item(0, "Exit", "Exit", "Exit", ""), "second", "first") == -1
    assert value_of(word_item(0, "Exit", "Exit", "Ex", "Exit"), "first", None) == pytest.approx(0.5)
    # The judge misreads the original.
    assert value_of(word_item(0, "Exit", "exit", "Ex", "Exit"), "second", "first") is None
    assert value_of(face_item(0, 0.9, 0.7), "second", "first") == pytest.approx(-0.2)
    assert value_of(face_item(0, 0.9, 0.7), "first", None) == 0.9
    equal = {"kind": "picture", "row": 0, "path": "x", "psnr": {"first": 20.0, "second": None}}
    assert value_of(equal, "second", "first") is None  # infinite PSNR


def test_evaluate_returns_and_reports_cases_with_their_values(tmp_path: Path) -> None:
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
    assert {case.tokenizer for case in found.cases} == {"jpeg:40", "webp:40"}  # self-checks have no cases
    jpeg_psnr = sorted(line["psnr"]["jpeg:40"] for line in lines)
    jpeg_values = [case.value for case in found.cases if case.tokenizer == "jpeg:40"]
    assert jpeg_values == [*jpeg_psnr[:-4:-1], *jpeg_psnr[:3]]
    page = (tmp_path / "out/report.html").read_text()
    assert f"{compared[0].value:+.2f} dB PSNR" in page
    assert f"{jpeg_values[0]:.2f} dB PSNR" in page
