import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from imtok.pretrained.text import Glyph, decode_glyphs, split_words

Box = tuple[float, float, float, float]


@pytest.fixture
def detector(needs):
    return needs("text_detector/ppocrv6")


def sign(lines: list[str], size: tuple[int, int] = (400, 240)) -> tuple[np.ndarray, dict[str, Box]]:
    """A picture with lines of text, and the exact box of every word."""
    picture = Image.new("RGB", size, (210, 220, 235))
    pen, font, boxes = ImageDraw.Draw(picture), ImageFont.load_default(26), {}
    for row, line in enumerate(lines):
        x, y = 24.0, 24 + 60 * row
        for word in line.split(" "):
            pen.text((x, y), word, fill=(30, 40, 50), font=font)
            boxes[word] = pen.textbbox((x, y), word, font=font)
            x += font.getlength(word + " ")
    return np.array(picture), boxes


def bounding_box(quad: np.ndarray) -> np.ndarray:
    return np.concatenate([quad.min(0), quad.max(0)])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


LINES = ["Open the small", "garden door", "and wait 25 minutes"]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_reads_and_splits_lines_in_all_four_orientations(detector, quarters: int) -> None:
    picture, boxes = sign(LINES)
    turned = np.ascontiguousarray(np.rot90(picture, quarters))
    found = detector.detect(turned)
    assert sorted(line.text for line in found) == sorted(LINES)
    for line in found:
        assert [word.text for word in line.words] == line.text.split(" ")
        assert line.score > 0.9
        for word in line.words:
            quad, sides = word.quad, turned.shape[:2]
            for _ in range(quarters):  # back to the upright picture; np.rot90 maps (x, y) to (y, width - x)
                quad, sides = np.stack([sides[0] - quad[:, 1], quad[:, 0]], axis=1), sides[::-1]
            assert iou(bounding_box(quad), np.array(boxes[word.text])) > 0.5, word.text
            assert quad[0, 0] < quad[1, 0]  # the first corner is the text's own top left
            assert quad[0, 1] < quad[3, 1]


def test_a_slanted_line_gives_slanted_words(detector) -> None:
    picture, _ = sign(["hello slanted world"], (400, 120))
    turned = np.array(Image.fromarray(picture).rotate(12, expand=True, fillcolor=(210, 220, 235)))
    (line,) = detector.detect(turned)
    assert [word.text for word in line.words] == ["hello", "slanted", "world"]
    for word in line.words:
        along = word.quad[1] - word.quad[0]
        assert abs(np.degrees(np.arctan2(-along[1], along[0])) - 12) < 3


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (15, 3000), (3000, 9), (64, 64)])
def test_pictures_without_text_give_no_lines(detector, size) -> None:
    assert detector.detect(np.full((*size, 3), 128, np.uint8)) == []


def test_ctc_decoding_keeps_the_position_of_every_character() -> None:
    steps = [0, 1, 1, 0, 1, 2, 0, 0]
    probabilities = np.full((8, 3), 0.1, np.float32)
    probabilities[np.arange(8), steps] = 0.8
    glyphs = decode_glyphs(probabilities, ["", "a", "b"], stretch=1.25)
    assert "".join(glyph.character for glyph in glyphs) == "aab"
    np.testing.assert_allclose([glyph.centre for glyph in glyphs], np.array([2, 4.5, 5.5]) / 8 * 1.25)
    assert all(glyph.score == pytest.approx(0.8) for glyph in glyphs)


def test_words_are_split_at_spaces_only() -> None:
    def line(text: str) -> list[Glyph]:
        return [Glyph(character, (index + 0.5) / len(text), 0.9) for index, character in enumerate(text)]

    words = split_words(line("ab  cde f"))
    assert [text for _, _, text, _ in words] == ["ab", "cde", "f"]
    for (left, right, text, score), start in zip(words, (0, 4, 8), strict=True):
        assert left == pytest.approx(max(0, start - 0.1) / 9)
        assert right == pytest.approx((start + len(text) - 0.1) / 9)
        assert score == pytest.approx(0.9)
    assert split_words(line("   ")) == []
    ((left, right, text, _),) = split_words(line("I"))
    assert (left, text) == (0, "I")
    assert right > 0.8


def test_neighbouring_words_do_not_overlap() -> None:
    centres = {"M": 0.1, "m": 0.3, " ": 0.38, "I": 0.42, "i": 0.6}
    first, second = split_words([Glyph(character, centre, 1.0) for character, centre in centres.items()])
    assert first[1] == second[0]
