"""What the ablation recipes share: a queue of short runs, and the paper's tables that their scores fill."""

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
    """Our name for a number, the metric, the sets that it is shown on, how it is printed, and the paper's name for it.

    A paper's names belong to its networks (no other number is called FID, T-ACC or F-Sim); "" where it is ours too.
    """

    name: str
    metric: str
    sets: tuple[str, ...]
    shown: str = "{:.2f}"
    of_paper: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the run that it shows, its label, and the paper's numbers by its names for them."""

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
        """Ours for every seed, the paper's beside it; runs that were not done are left out."""
        ours = [(column, data) for column in self.columns for data in column.sets]
        named = [column.of_paper or column.name for column in self.columns]
        theirs = [name for name in named if any(name in row.paper for row in self.rows)]
        head = ["", *(f"{column.name}, {data}" for column, data in ours), *(f"paper: {name}" for name in theirs)]
        lines = [head, ["---"] * len(head)]
        for row in self.rows:
            names = [name_of(row.run, seed) for seed in seeds if name_of(row.run, seed) in found.tokenizers]
            if names:
                shown = [[show(found, name, column, data) for name in names] for column, data in ours]
                scores = [" / ".join(filter(None, cells)) for cells in shown]
                lines.append([row.label, *scores, *(row.paper.get(name, "") for name in theirs)])
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
    """Do every run that is not done yet, evaluate all, print the tables, and write them to `tables.md`.

    It can be killed at any moment and goes on where it was.

    Args:
        configs: the runs by name.
        start: the weights that a run continues, by its name and seed; None for fresh ones.
        tables: they show those of their runs that are among `configs`.
        shards: with `train`, `validation` and `test` in it.
        out: folder for the runs, `scores/` and `tables.md`.
        seeds: each run is done once with every seed; a second one tells luck from effect.
        once: names of runs that are done with the first seed alone.

    Returns:
        All scores.
    """
    metrics = sorted({column.metric for table in tables for column in table.columns})
    for missing in load_networks(metrics, TEXT_JUDGE, FACE_JUDGE, Ranks())[1].values():
        raise missing  # now, and not after hours
    done = [
        run(seeded(config, seed), shards, out / name_of(name, seed), start(name, seed))
        for seed in seeds
        for name, config in configs.items()
        if seed == seeds[0] or name not in once
    ]
    found = evaluate(done, test_sets(shards), out / "scores", metrics=metrics, checks=False)
    names = {row.run for table in tables for row in table.rows} & configs.keys()
    shown = [table for table in tables if names & {row.run for row in table.rows}]
    text = "\n\n".join(table.markdown(found, seeds) for table in shown)
    (out / "tables.md").write_text(text + "\n")
    print(text)
    return found


def only_these(configs: dict[str, RunConfig], names: Sequence[str]) -> dict[str, RunConfig]:
    """Those of some runs that were asked for by name; all, if none was."""
    return {name: config for name, config in configs.items() if not names or name in names}


def check_names(names: Sequence[str], there: Sequence[str]) -> None:
    """Stop with one line when a run that was asked for does not exist."""
    if unknown := [name for name in names if name not in there]:
        raise SystemExit(f"no run is called {unknown[0]!r}; there are {', '.join(there)}")


def name_of(run: str, seed: int) -> str:
    """Name of a run's folder."""
    return f"{run}-seed-{seed}"


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """With other pictures and crops, and other first weights where it does not continue some."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))


def show(found: Evaluation, name: str, column: Column, data: str) -> str:
    """A score as the column prints it: the mean of several codebooks' numbers, nothing where there is none."""
    metrics = [one.metrics for one in found.results if (one.tokenizer, one.data) == (name, data)]
    scores = [score.value for one in metrics for metric, score in one.items() if family(metric) == column.metric]
    values = [value for value in scores if value is not None]
    return column.shown.format(fmean(values)) if values else ""
