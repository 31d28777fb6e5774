"""Meters of GenEval and DPG-Bench: a picture is scored against its prompt's entry in the benchmark's own file."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from imtok.config import ConfigError
from imtok.data.readers import read_table
from imtok.evaluation.dpg import KINDS, PICTURES, VQAModel, apply_dependencies, plain_answer, read_questions
from imtok.evaluation.generated_meters import Generated, GeneratedMeter
from imtok.evaluation.geneval import TASKS, ColourJudge, GenEvalResult, ObjectDetector, check_line, judge
from imtok.evaluation.meters import Measurement, make_items

Found = TypeVar("Found")
GENEVAL = ("geneval", *(f"geneval_{task}" for task in TASKS))
DPG = ("dpg", *(f"dpg_{kind}" for kind in KINDS))


class PromptMeter(GeneratedMeter[list[tuple[str, Found | None]]]):
    """Scores the pictures of a benchmark's prompts, and counts the pictures of other prompts."""

    def __init__(self) -> None:
        self._results: list[tuple[Found, int, str]] = []  # result, group and path of each scored picture
        self._others = 0

    @abstractmethod
    def score(self, one: Generated) -> Found | None:
        """Return the result for a picture; None if its prompt is not one of the benchmark's."""

    @abstractmethod
    def summary(self, found: Found) -> dict[str, Any]:
        """Return the fields that describe a result in `items.jsonl`."""

    def process(self, batch: Sequence[Generated]) -> list[tuple[str, Found | None]]:
        """Return the path and the `score` of each picture."""
        return [(one.sample.path, self.score(one)) for one in batch]

    def add(self, found: list[tuple[str, Found | None]], groups: Sequence[int]) -> None:
        for (path, result), group in zip(found, groups, strict=True):
            if result is None:
                self._others += 1
            else:
                self._results.append((result, group, path))

    def items(self) -> list[dict[str, Any]]:
        return [{"kind": self.metrics[0], "path": path, **self.summary(result)} for result, _, path in self._results]


class GenEvalMeter(PromptMeter[GenEvalResult]):
    """Shares of pictures that show what their prompts ask for (GenEval, Ghosh et al. 2023); rules: module `geneval`.

    `geneval` is the mean of the six tasks' shares, and is defined only if there are pictures of every task; the
    official script silently leaves out missing tasks. Pictures of other prompts are not scored.

    Args:
        table: path of GenEval's `evaluation_metadata.jsonl`.
        detector: network that detects objects.
        colours: classifier of the objects' colours.

    Raises:
        ConfigError: a line does not have GenEval's format.
        DataError: the table cannot be read.
    """

    metrics = GENEVAL

    def __init__(self, table: str, detector: ObjectDetector, colours: ColourJudge) -> None:
        super().__init__()
        self._lines = {str(row.get("prompt")): row for _, row in read_table(table)}
        for row in self._lines.values():
            check_line(row)
        self._detector, self._colours = detector, colours

    def score(self, one: Generated) -> GenEvalResult | None:
        """Judge whether a picture is correct; return None if its prompt is not one of GenEval's."""
        line = self._lines.get(one.prompt_info.prompt or "")
        if line is None:
            return None
        return judge(line, one.picture, self._detector.detect(one.picture), self._colours)

    def measure(self, metric: str) -> Measurement:
        tasks = TASKS if metric == "geneval" else (metric.removeprefix("geneval_"),)
        scored = [(result, group) for result, group, _ in self._results if result.task in tasks]
        if missing := [task for task in tasks if task not in {result.task for result, _ in scored}]:
            raise ConfigError(f"no picture is of a prompt of the task {missing[0]}")
        note = f"{len(scored)} pictures, {self._others} of other prompts; colours by {self._colours.size}"
        return Measurement(
            # All tasks have equal weight, whatever their numbers of pictures.
            items=make_items(
                [float(result.correct) for result, _ in scored],
                [group for _, group in scored],
                [tasks.index(result.task) for result, _ in scored],
                tasks,
                min_items=1,
            ),
            network=f"{self._detector.name} + {self._colours.name}",
            sha256=f"{self._detector.sha256} + {self._colours.sha256}",
            note=note,
        )

    def summary(self, found: GenEvalResult) -> dict[str, Any]:
        return {"prompt": found.prompt, "task": found.task, "correct": found.correct, "reasons": found.reasons}


@dataclass(frozen=True)
class DPGResult:
    """Answers to the questions about one picture.

    Attributes:
        item: `item_id` of the picture's prompt.
        said: the network's answer to each question, by question number.
        counted: 1 for each question that counts as answered with yes, else 0, by question number.
    """

    item: str
    said: dict[int, str]
    counted: dict[int, float]


class DPGMeter(PromptMeter[DPGResult]):
    """Shares of questions that are answered with yes (DPG-Bench, Hu et al. 2024, ELLA); rules: module `dpg`.

    `dpg` is the mean over prompts of the mean score of their pictures, where a picture's score is its share of yes. The
    metric of a category, such as `dpg_entity`, is the share of yes among all questions of that category. Pictures of
    other prompts are not scored.

    Deviation: the paper's network, mPLUG-large, is not supported by the transformers library; the network used in its
    place is instructed to answer yes or no.

    Args:
        table: path of DPG-Bench's `dpg_bench.csv`.
        answerer: network that answers the questions.

    Raises:
        ConfigError: a row does not have DPG-Bench's format.
        DataError: the table cannot be read.
    """

    metrics = DPG

    def __init__(self, table: str, answerer: VQAModel) -> None:
        super().__init__()
        self._questions = read_questions(table)
        rows = (row for _, row in read_table(table) if row.get("text"))
        self._item_of = {" ".join(str(row["text"]).split()): row["item_id"] for row in rows}
        if not self._item_of:
            raise ConfigError(f"{table}: has no column text with the prompts")
        self._answerer = answerer

    def score(self, one: Generated) -> DPGResult | None:
        """Answer the questions about a picture; return None if its prompt is not one of DPG-Bench's."""
        item = self._item_of.get(" ".join((one.prompt_info.prompt or "").split()))
        if item is None:
            return None
        answers = {
            question.number: self._answerer.answer(one.picture, question.text) for question in self._questions[item]
        }
        yes = {number: plain_answer(answer) == "yes" for number, answer in answers.items()}
        return DPGResult(item, answers, apply_dependencies(self._questions[item], yes))

    def measure(self, metric: str) -> Measurement:
        kind = metric.removeprefix("dpg_")
        pictures_by_prompt = defaultdict[str, list[tuple[float, int]]](list)  # score and group of each picture
        for result, group, _ in self._results:
            pictures_by_prompt[result.item].append((fmean(result.counted.values()), group))
        answers = [answer for result, *_ in self._results for answer in result.said.values()]
        neither = [answer for answer in answers if plain_answer(answer) not in ("yes", "no")]
        if answers and len(neither) == len(answers):
            raise ConfigError(f"not one answer is yes or no; {self._answerer.name} says {neither[0][:40]!r}")
        if metric == "dpg":  # all prompts have equal weight, whatever their numbers of pictures
            scored = [
                (fmean(value for value, _ in pictures), pictures[0][1]) for pictures in pictures_by_prompt.values()
            ]
        else:
            scored = [
                (result.counted[question.number], group)
                for result, group, _ in self._results
                for question in self._questions[result.item]
                if question.category.split("-")[0].strip() == kind
            ]
        if not scored:
            raise ConfigError(f"no picture is of a prompt with questions{'' if metric == 'dpg' else f' of {kind}'}")
        values, groups = zip(*scored, strict=True)
        uneven = sum(len(pictures) != PICTURES for pictures in pictures_by_prompt.values())
        note = f"{self._others} pictures of other prompts; {uneven} prompts have more or fewer than {PICTURES} pictures"
        if neither:
            note += f"; {len(neither)} answers of {len(answers)} are neither yes nor no and count as no"
        network, sha256 = self._answerer.name, self._answerer.sha256
        return Measurement(items=make_items(values, groups), network=network, sha256=sha256, note=note)

    def summary(self, found: DPGResult) -> dict[str, Any]:
        return {"item_id": found.item, "said": found.said, "answers": found.counted}
