"""Shared code of the ablation recipes: a queue of short runs, and miniatures of the paper's tables."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean

from nano import run, test_sets

from imtok.evaluation.evaluate import evaluate, load_networks
from imtok.evaluation.faces import FACE_JUDGE
from imtok.evaluation.metric_names import family
from imtok.evaluation.ranks import Ranks
from imtok.evaluation.results import Evaluation
from imtok.evaluation.text import TEXT_JUDGE
from imtok.training.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric as a table shows it.

    Attributes:
        name: heading of our numbers.
        metric: name of the metric, without the number of a codebook.
        sets: names of the test sets that it is shown for.
        shown: format of a number.
        of_paper: the paper's name for its numbers, "" where it is the same as `name`. A paper's names such as FID,
            T-ACC or F-Sim imply the paper's networks, so our numbers do not carry them.
    """

    name: str
    metric: str
    sets: tuple[str, ...]
    shown: str = "{:.2f}"
    of_paper: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the name of its run, its label, and the paper's numbers by the paper's names for them."""

    run: str
    label: str
    paper: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's tables in miniature."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def markdown(self, found: Evaluation, seeds: Sequence[int]) -> str:
        """Return the table with our numbers for every seed, then the paper's; runs that were not done are left out."""
        columns = [(column, data) for column in self.columns for data in column.sets]
        paper_names = [column.of_paper or column.name for column in self.columns]
        in_paper = [name for name in paper_names if any(name in row.paper for row in self.rows)]
        head = ["", *(f"{column.name}, {data}" for column, data in columns), *(f"paper: {name}" for name in in_paper)]
        lines = [head, ["---"] * len(head)]
        for row in self.rows:
            names = [name_of(row.run, seed) for seed in seeds if name_of(row.run, seed) in found.tokenizers]
            if names:
                shown = [[show(found, name, column, data) for name in names] for column, data in columns]
                scores = [" / ".join(filter(None, cells)) for cells in shown]
                lines.append([row.label, *scores, *(row.paper.get(name, "") for name in in_paper)])
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def carry_out(
    configs: dict[str, RunConfig],
    start: Callable[[str, int], Path | None],
    tables: Sequence[Table],
    shards: Path,
    out: Path,
    seeds: tuple[int, ...],
    once: Collection[str] = (),
) -> Evaluation:
    """Do every run that is not done yet, evaluate all runs, print the tables, and write them to `tables.md`.

    The queue can be killed at any moment and resumes where it was.

    Args:
        configs: configs of the runs by name.
        start: function of a run's name and seed that returns the weights to start from; None for fresh weights.
        tables: tables to print; each shows those of its runs that are among `configs`.
        shards: folder of shards with the splits `train`, `validation` and `test`.
        out: folder for the runs, `scores/` and `tables.md`.
        seeds: each run is done once with every seed; a second seed shows how much of a difference is chance.
        once: names of runs that are done with the first seed only.

    Returns:
        The scores of all runs.
    """
    metrics = sorted({column.metric for table in tables for column in table.columns})
    for missing in load_networks(metrics, TEXT_JUDGE, FACE_JUDGE, Ranks())[1].values():
        raise missing  # before training, not after hours of it
    done = [
        run(seeded(config, seed), shards, out / name_of(name, seed), start(name, seed))
        for seed in seeds
        for name, config in configs.items()
        if seed == seeds[0] or name not in once
    ]
    evaluation = evaluate(done, test_sets(shards), out / "scores", metrics=metrics, checks=False)
    selected = {row.run for table in tables for row in table.rows} & configs.keys()
    shown = [table for table in tables if selected & {row.run for row in table.rows}]
    text = "\n\n".join(table.markdown(evaluation, seeds) for table in shown)
    (out / "tables.md").write_text(text + "\n")
    print(text)
    return evaluation


def only_these(configs: dict[str, RunConfig], names: Sequence[str]) -> dict[str, RunConfig]:
    """Return the runs with these names; all runs if no names are given."""
    return {name: config for name, config in configs.items() if not names or name in names}


def check_names(names: Sequence[str], there: Sequence[str]) -> None:
    """Exit with a one-line message when a requested run does not exist."""
    if unknown := [name for name in names if name not in there]:
        raise SystemExit(f"no run is called {unknown[0]!r}; there are {', '.join(there)}")


def name_of(run: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{run}-seed-{seed}"


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """Return the config with this seed, which decides pictures, crops and, if none are given, the initial weights."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))


def show(found: Evaluation, name: str, column: Column, data: str) -> str:
    """Return a score in the column's format: the mean over codebooks if there are several, "" without a score."""
    results = [result.metrics for result in found.results if (result.tokenizer, result.data) == (name, data)]
    scores = [score.value for metrics in results for key, score in metrics.items() if family(key) == column.metric]
    values = [value for value in scores if value is not None]
    return column.shown.format(fmean(values)) if values else ""
