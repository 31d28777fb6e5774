"""DPG-Bench's rules with recorded answers; every score was worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from imtok.config import ConfigError
from imtok.evaluation.dpg import read_questions, score_dpg, settle, split_grid

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = [
    "dog,a red dog on grass,,1,0,entity,whole,entity - whole (dog),Is there a dog?",
    'dog,a red dog on grass,,2,1,attribute,color,"attribute - color (dog, red)",Is the dog red?',
    "dog,a red dog on grass,,3,0,entity,whole,entity - whole (grass),Is there grass?",
    'dog,a red dog on grass,,4,"1, 3",relation,spatial,"relation - spatial (dog, grass, on)",Is the dog on the grass?',
    "sea,the sea,,1,0,entity,whole,entity - whole (sea),Is there a sea?",
]


class Recorded:
    """Says yes to the questions of which a picture's first pixel is a sum: 1, 2, 4, 8."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def answer(self, picture: np.ndarray, question: str) -> str:
        return "Yes." if picture[0, 0, 0] & 1 << self.texts.index(question) else "no"


def picture(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, dtype=np.uint8)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "dpg_bench.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    return tmp_path / "dpg_bench.csv"


def test_scores_by_hand(table: Path) -> None:
    questions = read_questions(str(table))
    assert [one.number for one in questions["dog"]] == [1, 2, 3, 4]  # the first row too
    assert questions["dog"][3].parents == (1, 3)
    answerer = Recorded([one.text for one in questions["dog"]])
    # All yes: 1. No dog: its colour and place go too, grass stays: 1/4. No grass: its place goes: 2/4. Nothing: 0.
    four = [picture(value) for value in (0b1111, 0b1110, 0b1011, 0)]
    scores = score_dpg(questions, [("dog", four)], answerer)
    assert scores.prompts.mean() == pytest.approx((1 + 1 / 4 + 2 / 4 + 0) / 4)
    # entity: dog 1 0 1 0, grass 1 1 0 0; colour 1 0 1 0; place 1 0 0 0
    assert scores.categories == {"entity - whole": 4 / 8, "attribute - color": 2 / 4, "relation - spatial": 1 / 4}
    assert scores.broad_categories == {"entity": 4 / 8, "attribute": 2 / 4, "relation": 1 / 4}
    sea = Recorded([*answerer.texts, questions["sea"][0].text])
    both = score_dpg(questions, [("dog", four), ("sea", [picture(0b10000)] * 4)], sea)
    assert both.prompts.mean() == pytest.approx((7 / 16 + 1) / 2)  # prompts weigh alike, however many questions


def test_a_chain_falls_whatever_its_order(tmp_path: Path) -> None:
    rows = [f"x,t,,{number},{parent},c,c,c (x),q{number}" for number, parent in ((3, 2), (2, 1), (1, 0))]
    (tmp_path / "chain.csv").write_text("\n".join([HEADER, rows[0], ROWS[4], *rows[1:]]))  # and rows that stand apart
    questions = read_questions(str(tmp_path / "chain.csv"))["x"]
    assert settle(questions, {1: False, 2: True, 3: True}) == {1: 0, 2: 0, 3: 0}
    assert settle(questions, {1: True, 2: False, 3: True}) == {1: 1, 2: 0, 3: 0}


def test_a_grid_is_cut_row_by_row() -> None:
    grid = np.zeros((16, 16, 3), dtype=np.uint8)
    grid[:8, 8:], grid[8:, :8], grid[8:, 8:] = 1, 2, 3
    assert [int(part[0, 0, 0]) for part in split_grid(grid)] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="16 x 15 pixels are no grid"):
        split_grid(grid[:15])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,t,,one,0,c,c,c (x),q", "chain.csv:3: no row of DPG-Bench"),
        ("x,t,,2,7,c,c,c (x),q", r"x: question 2 depends on \[7\]"),
        ("x,t,,2,2,c,c,c (x),q", r"x: question 2 depends on \[2\]"),
        ("x,t,,1,0,c,c,c (x),q", "x: two questions have one number"),
    ],
)
def test_broken_questions_are_refused_in_a_line(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chain.csv").write_text("\n".join([HEADER, "x,t,,1,0,c,c,c (x),q1", row]))
    with pytest.raises(ConfigError, match=message) as refused:
        read_questions(str(tmp_path / "chain.csv"))
    assert "\n" not in str(refused.value)


def test_nothing_is_swallowed(table: Path) -> None:
    questions = read_questions(str(table))
    answerer = Recorded([one.text for one in questions["sea"]])
    for drawn, message in (
        ([("cat", [picture(1)])], "cat: no questions"),
        ([("sea", [])], "sea: 0 pictures, 4 are wanted"),
        ([("sea", [picture(1)] * 3)], "sea: 3 pictures, 4 are wanted"),
        ([("sea", [picture(1)] * 4)] * 2, "sea: comes twice"),
        ([], "no pictures to score"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_dpg(questions, drawn, answerer)
    one = score_dpg(questions, [("sea", [picture(1)])], answerer, per_prompt=1)  # for a look before the whole
    assert one.prompts.mean() == 1
