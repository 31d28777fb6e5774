"""Meters of GenEval and DPG-Bench: a picture is scored by what its prompt's line in the benchmark's own file asks."""

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
    """Scores the pictures of a benchmark's prompts, and counts the others."""

    def __init__(self) -> None:
        self._found: list[tuple[Found, int, str]] = []
        self._others = 0

    @abstractmethod
    def score(self, one: Generated) -> Found | None:
        """What is found on a picture; None for one of another prompt."""

    @abstractmethod
    def summary(self, found: Found) -> dict[str, Any]:
        """What `items.jsonl` tells of a picture."""

    def process(self, batch: Sequence[Generated]) -> list[tuple[str, Found | None]]:
        """The path of each picture, and its `score`."""
        return [(one.sample.path, self.score(one)) for one in batch]

    def add(self, found: list[tuple[str, Found | None]], groups: Sequence[int]) -> None:
        for (path, one), group in zip(found, groups, strict=True):
            if one is None:
                self._others += 1
            else:
                self._found.append((one, group, path))

    def items(self) -> list[dict[str, Any]]:
        return [{"kind": self.metrics[0], "path": path, **self.summary(one)} for one, _, path in self._found]


class GenEvalMeter(PromptMeter[GenEvalResult]):
    """Shares of pictures that show what their prompts ask (GenEval, Ghosh et al. 2023); see `geneval` for the rules.

    `geneval` is the mean of the six tasks'; without pictures of each there is none, where the official script leaves a
    task out without a word. Pictures of other prompts are not scored.

    Args:
        table: GenEval's `evaluation_metadata.jsonl`.
        detector: finds objects.
        colours: names their colours.

    Raises:
        ConfigError: a line that is none of GenEval's.
        DataError: a table that cannot be read.
    """

    metrics = GENEVAL

    def __init__(self, table: str, detector: ObjectDetector, colours: ColourJudge) -> None:
        super().__init__()
        self._lines = {str(row.get("prompt")): row for _, row in read_table(table)}
        for row in self._lines.values():
            check_line(row)
        self._detector, self._colours = detector, colours

    def score(self, one: Generated) -> GenEvalResult | None:
        """Whether a picture is right; None for one of another prompt."""
        line = self._lines.get(one.prompt_info.prompt or "")
        if line is None:
            return None
        return judge(line, one.picture, self._detector.detect(one.picture), self._colours)

    def measure(self, metric: str) -> Measurement:
        tasks = TASKS if metric == "geneval" else (metric.removeprefix("geneval_"),)
        some = [(one, group) for one, group, _ in self._found if one.task in tasks]
        if missing := [task for task in tasks if task not in {one.task for one, _ in some}]:
            raise ConfigError(f"no picture is of a prompt of the task {missing[0]}")
        note = f"{len(some)} pictures, {self._others} of other prompts; colours by {self._colours.size}"
        return Measurement(
            # A task counts as much as another, whatever their numbers of pictures.
            items=make_items(
                [float(one.correct) for one, _ in some],
                [group for _, group in some],
                [tasks.index(one.task) for one, _ in some],
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
    """What was said of a picture.

    Attributes:
        item: its prompt's `item_id`.
        said: the answer to each question, by the question's number.
        counted: 1 for those that count as answered with yes, else 0.
    """

    item: str
    said: dict[int, str]
    counted: dict[int, float]


class DPGMeter(PromptMeter[DPGResult]):
    """Shares of questions that are answered with yes (DPG-Bench, Hu et al. 2024, ELLA); see `dpg` for the rules.

    `dpg` is the mean of the prompts', each the mean of its pictures'; the kinds are shares of questions. Pictures of
    other prompts are not scored.

    Deviation: the paper's network, mPLUG-large, is none that the transformers library opens; whichever answers is told
    to say yes or no.

    Args:
        table: DPG-Bench's `dpg_bench.csv`.
        answerer: answers.

    Raises:
        ConfigError: a row that is none of DPG-Bench's.
        DataError: a table that cannot be read.
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
        """The answers about a picture; None for one of another prompt."""
        item = self._item_of.get(" ".join((one.prompt_info.prompt or "").split()))
        if item is None:
            return None
        said = {asked.number: self._answerer.answer(one.picture, asked.text) for asked in self._questions[item]}
        yes = {number: plain_answer(answer) == "yes" for number, answer in said.items()}
        return DPGResult(item, said, apply_dependencies(self._questions[item], yes))

    def measure(self, metric: str) -> Measurement:
        kind = metric.removeprefix("dpg_")
        of_prompts = defaultdict[str, list[tuple[float, int]]](list)
        for one, group, _ in self._found:
            of_prompts[one.item].append((fmean(one.counted.values()), group))
        said = [answer for one, *_ in self._found for answer in one.said.values()]
        neither = [answer for answer in said if plain_answer(answer) not in ("yes", "no")]
        if said and len(neither) == len(said):
            raise ConfigError(f"not one answer is yes or no; {self._answerer.name} says {neither[0][:40]!r}")
        if metric == "dpg":  # a prompt counts as much as another, whatever its number of pictures
            some = [(fmean(value for value, _ in those), those[0][1]) for those in of_prompts.values()]
        else:
            some = [
                (one.counted[question.number], group)
                for one, group, _ in self._found
                for question in self._questions[one.item]
                if question.category.split("-")[0].strip() == kind
            ]
        if not some:
            raise ConfigError(f"no picture is of a prompt with questions{'' if metric == 'dpg' else f' of {kind}'}")
        values, groups = zip(*some, strict=True)
        uneven = sum(len(those) != PICTURES for those in of_prompts.values())
        note = f"{self._others} pictures of other prompts; {uneven} prompts have more or fewer than {PICTURES} pictures"
        if neither:
            note += f"; {len(neither)} answers of {len(said)} are neither yes nor no and count as no"
        network, sha256 = self._answerer.name, self._answerer.sha256
        return Measurement(items=make_items(values, groups), network=network, sha256=sha256, note=note)

    def summary(self, found: DPGResult) -> dict[str, Any]:
        return {"item_id": found.item, "said": found.said, "answers": found.counted}
