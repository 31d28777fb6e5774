import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from imtok.data.pictures import decode
from imtok.data.sample import TextRegion
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.text import crop_word, edit_distance, normalized_edit_similarity, read_words, same_letters
from imtok.pretrained import Reading


def test_crop_has_a_margin_and_stays_inside() -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    assert crop_word(picture, TextRegion(box=(10.0, 10.0, 30.0, 20.0))).shape == (14, 24, 3)
    assert crop_word(picture, TextRegion(box=(0.0, 0.0, 60.0, 40.0))).shape == (40, 60, 3)
    assert crop_word(picture, TextRegion(box=(59.9, 39.9, 60.0, 40.0))).size > 0


def test_only_letters_and_digits_count() -> None:
    assert same_letters("Open!", "OPEN")
    assert same_letters("£4.50", "450")
    assert not same_letters("0pen", "open")


@given(st.text("abcA é", max_size=12), st.text("abcA é", max_size=12))
def test_edit_distance_is_rapidfuzz_s(a: str, b: str) -> None:
    assert edit_distance(a, b) == Levenshtein.distance(a, b)
    assert normalized_edit_similarity(a, b) == pytest.approx(Levenshtein.normalized_similarity(a, b))


def test_the_judge_reads_signs_and_not_their_ruins(needs) -> None:
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


def test_no_words_is_no_work() -> None:
    class Judge:
        name = sha256 = ""

        def read(self, crops: object) -> list[Reading]:
            raise AssertionError("asked to read nothing")

    assert read_words(Judge(), [np.zeros((8, 8, 3), dtype=np.uint8)], [[]]) == []
