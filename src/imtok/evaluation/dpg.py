"""DPG-Bench's scoring rules (Hu et al. 2024, ELLA), for any network that answers yes-or-no questions about pictures.

A question counts as no if the answer to one of its parents is no. A picture's score is the mean over its questions, a
prompt's score the mean over its four pictures, and the total the mean over prompts.

Defects of the official script that are avoided here: the first row of the table of questions is skipped, and often with
it the first prompt; an error silently drops its prompt, and then several processes may wait forever for each other's
category scores; category scores use the raw answers for the last picture only (here: the answers for all pictures,
after the dependencies are applied); along a chain of dependencies, a no does not reach a child that is listed before
its parent; of a prompt whose rows are not contiguous, only the last block is kept.
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
"""Number of pictures per prompt."""


@runtime_checkable
class VQAModel(Protocol):
    """Answers questions about pictures; the paper uses mPLUG-large.

    Attributes:
        name: name of the network, reported with the score.
        sha256: hash of its weights, reported with the score.
    """

    name: str
    sha256: str

    def answer(self, picture: Picture, question: str) -> str:
        """Return the answer: `yes`, or any other text, which counts as no."""
        ...


@dataclass(frozen=True)
class Question:
    """A question about the pictures of a prompt.

    Attributes:
        number: number of the question within its prompt.
        text: the question.
        parents: numbers of the questions that must be answered with yes for this one to count.
        category: category such as `entity - whole`; the part before the hyphen is the broad category.
    """

    number: int
    text: str
    parents: tuple[int, ...]
    category: str


def read_questions(table: str) -> dict[str, list[Question]]:
    """Read the questions of each prompt from DPG-Bench's CSV file, by the prompt's `item_id`.

    Raises:
        ConfigError: a row lacks a value or has an invalid one, two questions of a prompt have the same number, or a
            question depends on one that does not exist or on itself (one-line message).
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
    for item, item_questions in questions.items():
        _check_parents(item, item_questions)
    return dict(questions)


def apply_dependencies(questions: Sequence[Question], answers: Mapping[int, bool]) -> dict[int, float]:
    """Return 1 for each question that, like all its ancestors, is answered with yes, else 0; by question number."""
    parents = {question.number: question.parents for question in questions}

    def holds(number: int) -> bool:
        return answers[number] and all(holds(parent) for parent in parents[number])

    return {number: float(holds(number)) for number in parents}


def _check_parents(item: str, questions: Sequence[Question]) -> None:
    parents = {question.number: question.parents for question in questions}
    if len(parents) < len(questions):
        raise ConfigError(f"DPG-Bench: {item}: two questions have one number")
    for number in parents:
        ancestors = set(parents[number])
        while added := {parent for ancestor in ancestors for parent in parents.get(ancestor, ())} - ancestors:
            ancestors |= added
        if number in ancestors or not ancestors <= parents.keys():
            raise ConfigError(f"DPG-Bench: {item}: question {number} depends on {sorted(ancestors)}, which cannot be")


def plain_answer(answer: str) -> str:
    """Normalize an answer for comparison: "yes" counts as yes, everything else as no.

    Deviation: case and final full stops are ignored; the official script's network outputs lower case only.
    """
    return answer.strip().rstrip(".").lower()
