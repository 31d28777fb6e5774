"""Results of an evaluation, and their representation in `metrics.json`."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from imtok.checkpoints import write_text
from imtok.config import FORMAT_VERSION
from imtok.data.pictures import Picture
from imtok.evaluation.best_worst import Case
from imtok.evaluation.failures import Failure
from imtok.evaluation.meters import Measurement
from imtok.evaluation.metric_names import MetricInfo, metric_info
from imtok.evaluation.sets import DatasetSummary
from imtok.evaluation.statistics import CONFIDENCE, MIN_GROUPS, MIN_ITEMS, RESAMPLES, interval
from imtok.evaluation.text import CROP_MARGIN, MIN_CHARACTERS

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one tokenizer on one set.

    Attributes:
        value: the score; None if it is not finite, such as the PSNR of equal pictures.
        low: lower limit of the bootstrap interval; None for metrics that resampling would bias, and for too few groups.
        high: upper limit of the interval; None under the same conditions.
        count: number of pictures, words or faces behind the score.
        groups: number of groups of pictures that the bootstrap resamples.
        buckets: mean (None: too few items) and count of each size bucket; None for metrics without buckets.
        parts: the metric on disjoint parts of the set, for metrics without an interval.
        network: name of the network behind the score; several names are joined by " + ".
        sha256: hash of that network's weights; several are joined by " + ".
        taught: whether the tokenizer was trained through this very network, so that the score is no evidence.
        note: further information needed to reproduce the score.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    groups: int | None = None
    buckets: dict[str, dict[str, float | int | None]] | None = None
    parts: list[float] | None = None
    network: str | None = None
    sha256: str | None = None
    taught: bool = False
    note: str | None = None


def score_of(measurement: Measurement, teachers: frozenset[str]) -> Score:
    """Convert a measurement to a score with its interval.

    Args:
        measurement: measurement of one metric.
        teachers: names of the networks through which the measured tokenizer was trained.
    """
    network = measurement.network
    taught = network is not None and not teachers.isdisjoint(network.split(" + "))
    network_info = {"network": network, "sha256": measurement.sha256, "taught": taught, "note": measurement.note}
    items = measurement.items
    if items is None:
        return Score(value=measurement.value, count=measurement.count, parts=measurement.parts or None, **network_info)
    finite = items.where(np.isfinite(items.values))
    if not len(finite):
        return Score(value=None, count=len(items), **network_info)
    if len(finite) < len(items):
        left_out = f"{len(items) - len(finite)} that are not finite are left out"
        network_info["note"] = left_out if measurement.note is None else f"{measurement.note}; {left_out}"
    buckets = None
    if len(finite.bucket_names) > 1:
        columns = zip(finite.bucket_names, finite.bucket_means(), finite.bucket_sizes().tolist(), strict=True)
        buckets = {bucket: {"value": mean, "count": size} for bucket, mean, size in columns}
    found = interval(finite)
    return Score(
        value=found.value,
        low=found.low if np.isfinite(found.low) else None,
        high=found.high if np.isfinite(found.high) else None,
        count=finite.number_of_items(),
        groups=finite.number_of_groups(),
        buckets=buckets,
        **network_info,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """All scores of one tokenizer (or model-free self-check) on one set."""

    tokenizer: str
    data: str
    is_check: bool
    is_codec: bool = False
    metrics: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of a tokenizer minus that of another, the baseline, on the same items.

    Attributes:
        taught: whether either was trained through the network behind the metric, so that the difference is no evidence.
    """

    tokenizer: str
    baseline: str
    data: str
    metric: str
    difference: float
    low: float
    high: float
    count: int
    taught: bool = False

    @property
    def counts(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def better(self) -> bool:
        """Whether the tokenizer is better than the baseline; meaningful only if `counts`."""
        return (self.difference > 0) != metric_info(self.metric).lower_is_better


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a set for the report, with all reconstructions, downscaled to save memory.

    Attributes:
        pictures: the original and the reconstructions, by name.
        texts: caption or class given to each tokenizer that is conditioned on text, by name.
        parts: words and faces as in `items.jsonl`, each with its crop from every picture.
    """

    data: str
    path: str
    pictures: dict[str, Picture]
    texts: dict[str, str]
    parts: list[tuple[dict[str, Any], dict[str, Picture]]]

    def without(self, names: Collection[str]) -> "Example":
        """Return the example without some tokenizers."""

        def remaining(pictures: dict[str, Picture]) -> dict[str, Picture]:
            return {name: picture for name, picture in pictures.items() if name not in names}

        return replace(
            self, pictures=remaining(self.pictures), parts=[(item, remaining(part)) for item, part in self.parts]
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of an evaluation; `metrics.json` holds all of them but the examples and cases.

    Attributes:
        tokenizers: for each reconstructor, its teachers ("unknown" stands for teachers that are not known), whether it
            is a self-check, and the hash of its weights.
        reproduction: the command (absent for sets in memory) and the versions of the software.
        cases: best and worst cases; of all reconstructors but the first, relative to the first.
        protocol: name of the published protocol, if one was requested.
        deviations: deviations from the protocol on each set.
        notes: further notes that every reader must see.
        failed: what was requested but had to be left out, and why.
    """

    tokenizers: dict[str, dict[str, Any]]
    sets: list[DatasetSummary]
    results: list[Result]
    comparisons: list[Comparison]
    preprocessing: str
    examples: list[Example] = field(repr=False)
    reproduction: dict[str, Any] = field(default_factory=dict)
    cases: list[Case] = field(repr=False, default_factory=list)
    protocol: str | None = None
    deviations: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def score(self, tokenizer: str, data: str, metric: str) -> Score:
        """Return one score by names.

        Raises:
            KeyError: the score was not measured.
        """
        for result in self.results:
            if (result.tokenizer, result.data) == (tokenizer, data):
                return result.metrics[metric]
        raise KeyError((tokenizer, data))

    def __str__(self) -> str:
        differences = [
            f"{c.tokenizer} - {c.baseline}, {c.data}, {c.metric}: "
            f"{c.difference:+.3g} ({c.low:+.3g} to {c.high:+.3g}, n = {c.count}){' *' if c.taught else ''}"
            for c in self.comparisons
        ]
        scores = [score for result in self.results for score in result.metrics.values()]
        footnote = ["* through a network that a tokenizer was trained with: no evidence"]
        lines_below = [*differences, *(footnote if any(score.taught for score in scores) else []), *self.remarks]
        return "\n".join([markdown_table(self.results), *(["", *lines_below] if lines_below else [])])

    @property
    def remarks(self) -> list[str]:
        """What every reader must see, one line each: the deviations from the protocol, and the notes."""
        deviation_lines = [
            f"not the numbers of the protocol {self.protocol} on {data}: {'; '.join(found)}"
            for data, found in self.deviations.items()
            if found
        ]
        return [*deviation_lines, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "imtok": version("imtok"),
            **self.reproduction,
            "preprocessing": self.preprocessing,
            "pixels": "uint8, rounded 127.5 (x + 1) after clamping",
            "interval": f"{CONFIDENCE:.0%} percentile bootstrap over groups of pictures, {RESAMPLES} resamples, "
            f"seed 0; none with fewer than {MIN_GROUPS} groups",
            "buckets": f"mean of bucket means; one of fewer than {MIN_ITEMS} items is left out unless all are",
            "words": f"{MIN_CHARACTERS} characters or more; cut out with a margin of {CROP_MARGIN} of their height, "
            "TokBench's own at their boxes",
            "protocol": self.protocol,
            "deviations": self.deviations,
            "notes": self.notes,
            "failed": [
                {name: value for name, value in asdict(one).items() if value is not None} for one in self.failed
            ],
            "tokenizers": self.tokenizers,
            "data": [asdict(one) for one in self.sets],
            "results": [
                {
                    "tokenizer": r.tokenizer,
                    "data": r.data,
                    "metrics": {name: plain(s) for name, s in r.metrics.items()},
                }
                for r in self.results
            ],
            "comparisons": [asdict(one) | {"counts": one.counts} for one in self.comparisons],
        }


def metric_info_of(results: Sequence[Result]) -> Callable[[str], MetricInfo]:
    """Return `metric_info` for the metrics of some results, bound to the networks behind them."""
    networks = {metric: score.network for result in results for metric, score in result.metrics.items()}
    return lambda metric: metric_info(metric, networks.get(metric))


def show_number(value: float | None) -> str:
    """Format a number with about three significant digits; None is shown as ∞."""
    if value is None:
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def show_interval(score: Score) -> str:
    """Format the interval, or else the range over disjoint parts of the set."""
    if score.low is not None and score.high is not None:
        return f"{show_number(score.low)} to {show_number(score.high)}"
    if score.parts:
        return f"{len(score.parts)} parts: {show_number(min(score.parts))} to {show_number(max(score.parts))}"
    return ""


def markdown_table(results: Sequence[Result], metrics: Sequence[str] | None = None) -> str:
    """Format the scores as a Markdown table with a row for each tokenizer and set; empty columns are left out."""
    metrics = metrics or list(dict.fromkeys(metric for result in results for metric in result.metrics))
    metrics = [metric for metric in metrics if any(metric in result.metrics for result in results)]
    labels = (one.label for one in map(metric_info_of(results), metrics))
    lines: list[tuple[str, ...]] = [("tokenizer", "pictures", *labels)]
    for result in results:
        cells = [show_score(result.metrics[m]) if m in result.metrics else "" for m in metrics]
        lines.append((result.tokenizer, result.data, *cells))
    return as_markdown(lines)


def show_score(score: Score) -> str:
    """Format a score's value, with a star if it is no evidence."""
    return show_number(score.value) + (" *" if score.taught else "")


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as a Markdown table; the first row is the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    separator = ["-" * width for width in widths]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in (lines[0], separator, *lines[1:]))


def plain(score: Score) -> dict[str, Any]:
    """Convert a score to its form in `metrics.json`: attributes that are None or False are left out, except `value`."""
    return {name: value for name, value in asdict(score).items() if value is not None and value is not False} | {
        "value": score.value
    }


def write_results(metrics: dict[str, Any], items: Iterable[str], out: Path) -> None:
    """Write `metrics.json` and `items.jsonl`, each atomically, and remove the report of an earlier evaluation."""
    (out / REPORT).unlink(missing_ok=True)
    write_text(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_text(out / "items.jsonl", "".join(f"{item}\n" for item in items))
