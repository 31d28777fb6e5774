import numpy as np
import pytest
from PIL import Image

from imtok.data.fonts import Typeface, find_typefaces
from imtok.data.typesetting import bounds, largest_size, set_paragraph, set_rows

TEXT = "Small dogs watch green rivers, quiet gardens guard old lanterns. Brave sailors follow distant stars."


@pytest.fixture(scope="module")
def faces() -> list[Typeface]:
    return find_typefaces(split="all")[::6]


def inked(words, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of the pixels that the words cover, drawn on one canvas."""
    canvas = Image.new("RGB", size)
    for word in words:
        word.draw(canvas, (255, 255, 255))
    return np.asarray(canvas)[..., 0] > 0


def test_boxes_are_the_bounds_of_the_pixels(faces):
    for face in faces:
        for word in set_rows(face, [["Jay,", "ifg"], ["QUART"]], height=30.0):
            word = word.moved(20, 20)
            rows, columns = np.nonzero(inked([word], (500, 300)))
            assert word.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), face


def test_rows_have_the_given_height(faces):
    for face in faces:
        rows = set_rows(face, [["SALE"], ["open", "day"]], height=40.0)
        for row in (rows[:1], rows[1:]):
            assert min(word.box[3] - word.box[1] for word in row) == pytest.approx(40, abs=2)
        (_, _, _, first_bottom), (_, second_top, _, _) = bounds(rows[:1]), bounds(rows[1:])
        assert second_top > first_bottom
        assert rows[1].box[2] < rows[2].box[0]
        assert rows[1].origin[1] == rows[2].origin[1]  # one baseline
        assert bounds(rows)[:2] == pytest.approx((0, 0), abs=1)


def test_rows_can_be_centred():
    (face,) = find_typefaces(split="all")[:1]
    wide, narrow = set_rows(face, [["WIDEST"], ["I"]], height=30.0)
    assert sum(wide.box[::2]) == pytest.approx(sum(narrow.box[::2]), abs=2)
    wide, narrow = set_rows(face, [["WIDEST"], ["I"]], height=30.0, centred=False)
    assert wide.box[0] == narrow.box[0]


def test_paragraphs_fit_in_the_largest_size(faces):
    for face in faces:
        size = largest_size(face, TEXT, 200.0, 200.0)
        words = set_paragraph(face, TEXT, size, 200.0)
        assert " ".join(word.text for word in words) == TEXT
        assert max(word.origin[0] + face.font(size).getlength(word.text) for word in words) <= 201
        assert bounds(words)[3] <= 200 + size * 0.4  # descenders of the last line
        taller = set_paragraph(face, TEXT, size + 2, 200.0)
        assert not taller or bounds(taller)[3] > 200 - 1.25 * (size + 2)
    assert largest_size(faces[0], "incomprehensibilities", 10.0, 200.0) < 3
