"""Results of an evaluation of generated pictures, and their representation in `metrics.json`."""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from imtok.config import FORMAT_VERSION
from imtok.evaluation.metric_names import metric_info
from imtok.evaluation.results import Score, as_markdown, plain, show_interval, show_number
from imtok.evaluation.sets import DatasetSummary
from imtok.evaluation.statistics import CONFIDENCE, MIN_GROUPS, RESAMPLES


@dataclass(frozen=True, kw_only=True)
class ComparedWith:
    """The reference set.

    Attributes:
        name: its location.
        sha256: hash of the file if it is an .npz file, otherwise None.
        pictures: number of pictures that it contains.
        statistics: kinds of precomputed statistics that replace its pictures: `frechet`, `spatial`.
        looked_at: summary of its pictures if a metric needed them, otherwise None.
    """

    name: str
    sha256: str | None
    pictures: int
    statistics: list[str]
    looked_at: DatasetSummary | None


@dataclass(frozen=True, kw_only=True)
class GeneratedEvaluation:
    """Result of an evaluation of generated pictures, as stored in `metrics.json`.

    Attributes:
        pictures: summary of the generated pictures; its groups are prompts, where prompts with the same quoted text
            form one group.
        reference: the set that they were compared with; None without one.
        preprocessing: description of the reference's preprocessing.
        metrics: scores by metric name.
        failed: requested metrics that could not be measured, with the reasons.
        protocol: name of the protocol, if one was given.
        deviations: deviations from the protocol.
        notes: further caveats about the scores.
        teachers: networks that the generator's tokenizer was trained with; "unknown" stands for unknown ones.
        ended: why not all pictures were processed; None if all were.
        reproduction: the command, the SHA-256 of each table of prompts, texts or questions, and the software versions.
    """

    pictures: DatasetSummary
    reference: ComparedWith | None
    preprocessing: str
    metrics: dict[str, Score]
    failed: dict[str, str] = field(default_factory=dict)
    protocol: str | None = None
    deviations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)
    ended: str | None = None
    reproduction: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("metric", "value", "interval or parts", "of")]
        for metric, score in self.metrics.items():
            name = metric_info(metric).label + (" *" if score.taught else "")
            rows.append((name, show_number(score.value), show_interval(score), str(score.count)))
        lines = [as_markdown(rows)]
        if any(score.taught for score in self.metrics.values()):
            lines.append("* through a network that the tokenizer was trained with: no evidence")
        if self.deviations:
            lines.append(f"not the numbers of the protocol {self.protocol}: {'; '.join(self.deviations)}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        fields = asdict(self)
        return {
            "format_version": FORMAT_VERSION,
            "imtok": version("imtok"),
            **fields.pop("reproduction"),
            **fields,
            "interval": f"{CONFIDENCE:.0%} percentile bootstrap over prompts, {RESAMPLES} resamples, seed 0; none with "
            f"fewer than {MIN_GROUPS}; sets have disjoint parts instead",
            "metrics": {name: plain(score) for name, score in self.metrics.items()},
        }
