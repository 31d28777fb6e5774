"""DPG-Bench's rules with recorded answers; every score was computed by hand."""

from pathlib import Path

import pytest

from imtok.config import ConfigError
from imtok.evaluation.dpg import apply_dependencies, plain_answer, read_questions

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


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "dpg_bench.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    return tmp_path / "dpg_bench.csv"


def test_question_counts_only_if_its_parents_are_answered_yes(table: Path) -> None:
    questions = read_questions(str(table))
    assert [question.number for question in questions["dog"]] == [1, 2, 3, 4]  # the first row is not skipped
    assert questions["dog"][3].parents == (1, 3)
    for answered_no, counted in (
        ((), (1, 1, 1, 1)),
        ((1,), (0, 0, 1, 0)),
        ((3,), (1, 1, 0, 0)),
        ((1, 3), (0, 0, 0, 0)),
    ):
        answers = {number: number not in answered_no for number in (1, 2, 3, 4)}
        assert tuple(apply_dependencies(questions["dog"], answers).values()) == counted


def test_only_a_plain_yes_counts_as_yes() -> None:
    counts = [plain_answer(answer) == "yes" for answer in ("yes", " Yes.\n", "YES", "no", "yes, two dogs", "")]
    assert counts == [True] * 3 + [False] * 3


def test_answer_no_propagates_along_a_dependency_chain_in_any_order(tmp_path: Path) -> None:
    rows = [f"x,t,,{number},{parent},c,c,c (x),q{number}" for number, parent in ((3, 2), (2, 1), (1, 0))]
    # The rows of x are not contiguous.
    (tmp_path / "chain.csv").write_text("\n".join([HEADER, rows[0], ROWS[4], *rows[1:]]))
    questions = read_questions(str(tmp_path / "chain.csv"))["x"]
    assert apply_dependencies(questions, {1: False, 2: True, 3: True}) == {1: 0, 2: 0, 3: 0}
    assert apply_dependencies(questions, {1: True, 2: False, 3: True}) == {1: 1, 2: 0, 3: 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,t,,one,0,c,c,c (x),q", "chain.csv:3: no row of DPG-Bench"),
        ("x,t,,2,0,c,c,c (x)", "chain.csv:3: no row of DPG-Bench .*a question is missing"),
        ("x,t,,2,7,c,c,c (x),q", r"x: question 2 depends on \[7\]"),
        ("x,t,,2,2,c,c,c (x),q", r"x: question 2 depends on \[2\]"),
        ("x,t,,1,0,c,c,c (x),q", "x: two questions have one number"),
    ],
)
def test_rejects_broken_questions_with_a_one_line_error(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chain.csv").write_text("\n".join([HEADER, "x,t,,1,0,c,c,c (x),q1", row]))
    with pytest.raises(ConfigError, match=message) as error:
        read_questions(str(tmp_path / "chain.csv"))
    assert "\n" not in str(error.value)
