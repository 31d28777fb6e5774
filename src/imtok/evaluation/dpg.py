"""DPG-Bench's scoring rules (Hu et al. 2024, ELLA) over any visual question answering: yes or no, question by question.

A question whose parent's answer is no counts as no; a picture's score is the mean of its questions, a prompt's that of
its four pictures, the whole that of the prompts. What goes wrong in the official script and not here: the first row of
the questions is skipped (with it, often, the first prompt); what fails is swallowed with its prompt; categories look at
the last picture's raw answers only (here at all pictures, after the parents); a child listed before its parent is not
zeroed along a chain; a prompt whose rows stand apart keeps the last of them only.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from imtok.config import ConfigError
from imtok.data.pictures import Picture
from imtok.data.readers import read_table

KINDS = ("global", "entity", "attribute", "relation", "other")
"""Broad categories of questions."""
PICTURES = 4
"""Of a prompt."""


@runtime_checkable
class VQAModel(Protocol):
    """DPGResult questions about pictures; the paper's is mPLUG-large.

    Attributes:
        name: stands beside the number.
        sha256: of its weights, likewise.
    """

    name: str
    sha256: str

    def answer(self, picture: Picture, question: str) -> str:
        """`yes` or anything else."""
        ...


@dataclass(frozen=True)
class Question:
    """A proposition about a prompt's picture.

    Attributes:
        number: within its prompt.
        text: the question.
        parents: numbers of the questions that must be answered yes for this one to count.
        category: such as `entity - whole`; what stands before the hyphen is the broad one.
    """

    number: int
    text: str
    parents: tuple[int, ...]
    category: str


def read_questions(table: str) -> dict[str, list[Question]]:
    """The questions of each prompt in DPG-Bench's CSV file, by the prompt's `item_id`.

    Raises:
        ConfigError: a row that lacks something, or a question whose parent does not exist; one line.
    """
    questions: dict[str, list[Question]] = defaultdict(list)
    for line, row in read_table(table):
        try:
            parents = tuple(int(number) for number in str(row["dependency"]).split(",") if int(number) != 0)
            text, category = row["question_natural_language"], row["tuple"].split("(")[0].strip()
            if not text:
                raise ValueError("a question is missing")
            questions[row["item_id"]].append(Question(int(row["proposition_id"]), text, parents, category))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{table}:{line}: no row of DPG-Bench ({error!r})") from None
    for item, asked in questions.items():
        _check_parents(item, asked)
    return dict(questions)


def apply_dependencies(questions: Sequence[Question], answers: Mapping[int, bool]) -> dict[int, float]:
    """1 for each question that was answered yes together with its parents, their parents, and so on; else 0."""
    parents = {one.number: one.parents for one in questions}

    def holds(number: int) -> bool:
        return answers[number] and all(holds(parent) for parent in parents[number])

    return {number: float(holds(number)) for number in parents}


def _check_parents(item: str, questions: Sequence[Question]) -> None:
    parents = {one.number: one.parents for one in questions}
    if len(parents) < len(questions):
        raise ConfigError(f"DPG-Bench: {item}: two questions have one number")
    for number in parents:
        above = set(parents[number])
        while more := {parent for one in above for parent in parents.get(one, ())} - above:
            above |= more
        if number in above or not above <= parents.keys():
            raise ConfigError(f"DPG-Bench: {item}: question {number} depends on {sorted(above)}, which cannot be")


def plain_answer(answer: str) -> str:
    """An answer as it is compared: "yes" counts, all else does not.

    Deviation: whatever its case and final full stop; the official script's network writes nothing but lower case.
    """
    return answer.strip().rstrip(".").lower()
