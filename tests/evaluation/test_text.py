import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from imtok.data.pictures import decode
from imtok.data.sample import Sample, TextRegion
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.meters import OriginalPicture, ReconstructedPicture
from imtok.evaluation.reconstructors import Reconstruction
from imtok.evaluation.results import Result, Score, markdown_table
from imtok.evaluation.text import (
    TextMeter,
    crop_word,
    edit_distance,
    normalized_edit_similarity,
    read_words,
    same_letters,
)
from imtok.pretrained import Reading


def test_word_crop_has_a_margin_and_stays_inside_the_picture() -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    assert crop_word(picture, TextRegion(box=(10.0, 10.0, 30.0, 20.0))).shape == (14, 24, 3)
    assert crop_word(picture, TextRegion(box=(0.0, 0.0, 60.0, 40.0))).shape == (40, 60, 3)
    assert crop_word(picture, TextRegion(box=(59.9, 39.9, 60.0, 40.0))).size > 0


def test_same_letters_compares_only_letters_and_digits() -> None:
    assert same_letters("Open!", "OPEN")
    assert same_letters("£4.50", "450")
    assert not same_letters("0pen", "open")


@given(st.text("abcA é", max_size=12), st.text("abcA é", max_size=12))
def test_edit_distance_agrees_with_rapidfuzz(a: str, b: str) -> None:
    assert edit_distance(a, b) == Levenshtein.distance(a, b)
    assert normalized_edit_similarity(a, b) == pytest.approx(Levenshtein.normalized_similarity(a, b))


def test_judge_reads_signs_and_not_noise(needs) -> None:
    judge = needs("text_judge/easyocr")
    signs = list(SyntheticPictures(12, seed=7))
    pictures = [decode(sample.image, sample.path) for sample in signs]
    noise = [np.random.default_rng(0).integers(0, 255, picture.shape, dtype=np.uint8) for picture in pictures]
    words = [sample.words or [] for sample in signs]
    texts = [word.text for inside in words for word in inside]
    before, after = read_words(judge, pictures, words), read_words(judge, noise, words)
    assert len(before) == len(after) == len(texts)
    assert sum(map(same_letters, before, texts)) > 0.6 * len(texts)
    assert sum(map(same_letters, after, texts)) == 0


def test_judge_is_not_called_without_words() -> None:
    class Judge:
        name = sha256 = ""
        reads_lines = True

        def read(self, crops: object) -> list[Reading]:
            raise AssertionError("asked to read nothing")

    assert read_words(Judge(), [np.zeros((8, 8, 3), dtype=np.uint8)], [[]]) == []


def test_tokbench_s_scoring_rules_on_given_readings() -> None:
    """Which words are scored, and how, with a judge whose readings are given in a table."""
    table = [  # text, read before, read after, pixels a character
        ("Exit", "Exit", "Exit", 20),
        ("Exit", "Exit", "exit", 20),  # different case
        ("Exit", "EXIT", "Exit", 20),  # not read exactly on the original
        ("stop!", "stop!", "stqp", 20),
        ("tiny", "tiny", "tiny", 5),  # below the smallest bucket for 128 pixels: .06 * 128 = 7.7
        ("lost", "cost", "lost", 20),
        ("--", "--", "", 20),  # no letters or digits
        ("a", "a", "a", 20),  # one character
    ]

    class Judge:
        name, sha256, reads_lines = "text_judge/table", "0", True
        column = 0

        def read(self, crops: object) -> list[Reading]:
            self.column += 1  # the originals first
            return [Reading(row[self.column], 1.0) for row in table if len(row[0]) > 1]  # pyright: ignore

    words = [TextRegion(box=(0.0, 0.0, float(len(t) * pixels), 4.0), text=t) for t, _, _, pixels in table]
    picture = np.zeros((128, 128, 3), dtype=np.uint8)
    sample = Sample(image=b"", path="x", width=128, height=128, words=words)
    meter = TextMeter(Judge())
    originals = [OriginalPicture(row=0, sample=sample, original=picture, prepared=picture, content=picture)]
    read = meter.process(
        originals,
        {"tokenizer": [ReconstructedPicture(output=Reconstruction(picture), content=picture, restored=picture)]},
    )
    meter.add(read, groups=[0])
    found = meter.results("tokenizer")
    values = {name: m.items.values.tolist() for name, m in found.items() if m.items is not None}
    assert values["text_accuracy"] == [1, 0, 0, 0]  # Exit, Exit in different case, stop!, --
    assert values["text_ned"] == [1, 0.75, pytest.approx(3 / 5), 0]
    assert values["text_accuracy_alnum"] == [1, 1, 1, 0]  # the three Exits and stop
    assert "4 of 7 words are scored" in (found["text_accuracy"].note or "")
    assert found["text_accuracy"].network == "text_judge/table"
    (first, *_) = meter.items(originals, read)
    assert (first["text"], first["original"], first["read"]) == ("Exit", "Exit", {"tokenizer": "Exit"})


def test_only_the_published_judge_s_metrics_have_the_published_names() -> None:
    def column_heads(judge: str) -> list[str]:
        score = Score(value=0.5, network=judge)
        metrics = {"text_accuracy": score, "text_ned": score, "text_accuracy_alnum": score, "psnr": Score(value=20.0)}
        table = markdown_table([Result(tokenizer="a", data="signs", is_check=False, metrics=metrics)])
        return [cell.strip() for cell in table.splitlines()[0].split("|")[3:-1]]

    assert column_heads("text_judge/parseq") == ["T-ACC", "T-NED", "text accuracy, letters and digits", "PSNR"]
    assert column_heads("text_judge/easyocr") == [
        *("text accuracy", "edit similarity", "text accuracy, letters and digits", "PSNR")
    ]
