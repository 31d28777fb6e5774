import numpy as np

from imtok.data.pictures import decode
from imtok.data.sample import TextRegion
from imtok.data.synthetic import SyntheticPictures
from imtok.evaluation.text import crop_word, read_words, same_letters
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


def test_the_judge_reads_signs_and_not_their_ruins(needs) -> None:
    judge = needs("text_judge/easyocr")
    read, ruined = 0, 0
    signs = list(SyntheticPictures(12, seed=7))
    for sample in signs:
        picture = decode(sample.image, sample.path)
        noise = np.random.default_rng(0).integers(0, 255, picture.shape, dtype=np.uint8)
        words = read_words(judge, picture, noise, sample.words or [])
        assert [word.text for word in words] == [word.text for word in sample.words or []]
        read += sum(same_letters(word.text, word.original) for word in words)
        ruined += sum(same_letters(word.text, word.reconstruction) for word in words)
    total = sum(len(sample.words or []) for sample in signs)
    assert read > 0.6 * total
    assert ruined == 0


def test_no_words_is_no_work() -> None:
    class Judge:
        def read(self, crops: object) -> list[Reading]:
            raise AssertionError("asked to read nothing")

    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    assert read_words(Judge(), picture, picture, []) == []
