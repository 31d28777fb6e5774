"""What an evaluation finds, and its form in `metrics.json`."""

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
        value: None where it is not finite: the PSNR of equal pictures.
        low: of the bootstrap interval; None for metrics that it would bias, and with too few groups.
        high: likewise.
        count: pictures, words or faces behind it.
        groups: of pictures that the bootstrap draws together.
        buckets: the mean of each size bucket (None: too few) and its count, where there are buckets.
        parts: the metric on disjoint parts of the set, where there is no interval.
        network: behind the number; of several their names joined by +.
        sha256: of the network's weights, likewise.
        taught: the tokenizer was trained through this very network, so the number is no evidence.
        note: what else has to be known to repeat it.
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
    """A measurement with its interval.

    Args:
        measurement: of one metric.
        teachers: the networks that whatever was measured had been trained through.
    """
    network = measurement.network
    taught = network is not None and not teachers.isdisjoint(network.split(" + "))
    about = {"network": network, "sha256": measurement.sha256, "taught": taught, "note": measurement.note}
    items = measurement.items
    if items is None:
        return Score(value=measurement.value, count=measurement.count, parts=measurement.parts or None, **about)
    finite = items.where(np.isfinite(items.values))
    if not len(finite):
        return Score(value=None, count=len(items), **about)
    if len(finite) < len(items):
        left_out = f"{len(items) - len(finite)} that are not finite are left out"
        about["note"] = left_out if measurement.note is None else f"{measurement.note}; {left_out}"
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
        **about,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """All scores of one tokenizer (or model-free check) on one set."""

    tokenizer: str
    data: str
    is_check: bool
    is_codec: bool = False
    metrics: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of a tokenizer minus that of another, the baseline, on the same items.

    Attributes:
        taught: either was trained through the network behind it, so the difference is no evidence.
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
        """Whether the tokenizer is better than the baseline, as far as that counts."""
        return (self.difference > 0) != metric_info(self.metric).lower_is_better


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a set for the report, and every tokenizer's reconstruction: small, or they would fill the memory.

    Attributes:
        pictures: the original and the reconstructions, by name.
        texts: what those that hear of captions were told.
        parts: words and faces as in `items.jsonl`, each cut out of all of the pictures.
    """

    data: str
    path: str
    pictures: dict[str, Picture]
    texts: dict[str, str]
    parts: list[tuple[dict[str, Any], dict[str, Picture]]]

    def without(self, names: Collection[str]) -> "Example":
        """But for some tokenizers."""

        def left(pictures: dict[str, Picture]) -> dict[str, Picture]:
            return {name: picture for name, picture in pictures.items() if name not in names}

        return replace(self, pictures=left(self.pictures), parts=[(item, left(part)) for item, part in self.parts])


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that came out; `metrics.json` is this without the examples and cases.

    Attributes:
        tokenizers: of each reconstructor its teachers ("unknown" stands for those that nobody here knows), whether it is a
            check, and the hash of its weights.
        reproduction: the command (of sets in memory there is none) and the versions of the software.
        cases: what the reconstructors draw best and worst, all but the first beside the first.
        protocol: of what publication, by name.
        deviations: what differs from it, on each set.
        notes: what else a reader must not miss.
        failed: what was asked for and had to be left out, and why.
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
        """One score by names.

        Raises:
            KeyError: it was not measured.
        """
        for result in self.results:
            if (result.tokenizer, result.data) == (tokenizer, data):
                return result.metrics[metric]
        raise KeyError((tokenizer, data))

    def __str__(self) -> str:
        differences = [
            f"{one.tokenizer} - {one.baseline}, {one.data}, {one.metric}: "
            f"{one.difference:+.3g} ({one.low:+.3g} to {one.high:+.3g}, n = {one.count}){' *' if one.taught else ''}"
            for one in self.comparisons
        ]
        scores = [score for result in self.results for score in result.metrics.values()]
        stars = ["* through a network that a tokenizer was trained with: no evidence"]
        below = [*differences, *(stars if any(score.taught for score in scores) else []), *self.remarks]
        return "\n".join([markdown_table(self.results), *(["", *below] if below else [])])

    @property
    def remarks(self) -> list[str]:
        """What a reader must not miss, a line each: what differs from the protocol, and the notes."""
        differing = [
            f"not the numbers of the protocol {self.protocol} on {data}: {'; '.join(found)}"
            for data, found in self.deviations.items()
            if found
        ]
        return [*differing, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
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
    """`about` of the metrics of some results, by the networks behind them."""
    networks = {metric: score.network for result in results for metric, score in result.metrics.items()}
    return lambda metric: metric_info(metric, networks.get(metric))


def show_number(value: float | None) -> str:
    """Three significant digits or so; ∞ for what is infinite."""
    if value is None:
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def show_interval(score: Score) -> str:
    """The interval, or the range over disjoint parts of the set."""
    if score.low is not None and score.high is not None:
        return f"{show_number(score.low)} to {show_number(score.high)}"
    if score.parts:
        return f"{len(score.parts)} parts: {show_number(min(score.parts))} to {show_number(max(score.parts))}"
    return ""


def markdown_table(results: Sequence[Result], metrics: Sequence[str] | None = None) -> str:
    """The scores, a row for each tokenizer and set, as a Markdown table; empty columns are left out."""
    metrics = metrics or list(dict.fromkeys(metric for result in results for metric in result.metrics))
    metrics = [metric for metric in metrics if any(metric in result.metrics for result in results)]
    labels = (one.label for one in map(metric_info_of(results), metrics))
    lines: list[tuple[str, ...]] = [("tokenizer", "pictures", *labels)]
    for result in results:
        cells = [show_score(result.metrics[m]) if m in result.metrics else "" for m in metrics]
        lines.append((result.tokenizer, result.data, *cells))
    return as_markdown(lines)


def show_score(score: Score) -> str:
    """Its value, with a star if it is no evidence."""
    return show_number(score.value) + (" *" if score.taught else "")


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table; the first is its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in (lines[0], rule, *lines[1:]))


def plain(score: Score) -> dict[str, Any]:
    """A score in `metrics.json`: what there is nothing to say about is left out."""
    return {name: value for name, value in asdict(score).items() if value is not None and value is not False} | {
        "value": score.value
    }


def write_results(metrics: dict[str, Any], items: Iterable[str], out: Path) -> None:
    """`metrics.json` and `items.jsonl`, each whole or not at all, in place of an earlier evaluation's report."""
    (out / REPORT).unlink(missing_ok=True)
    write_text(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_text(out / "items.jsonl", "".join(f"{item}\n" for item in items))
