"""What an evaluation of generated pictures finds, and its form in `metrics.json`."""

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
    """The reference.

    Attributes:
        name: its place.
        sha256: of the file, where it is one .npz.
        pictures: how many it holds.
        statistics: that it brings along and that stand for its pictures, `frechet` and `spatial`.
        looked_at: its pictures, where some metric had to see them.
    """

    name: str
    sha256: str | None
    pictures: int
    statistics: list[str]
    looked_at: DatasetSummary | None


@dataclass(frozen=True, kw_only=True)
class GeneratedEvaluation:
    """What was found; `metrics.json` is this.

    Attributes:
        pictures: what was looked at; its groups are prompts, those of one quoted text together.
        reference: what it was compared with.
        preprocessing: of the reference.
        metrics: the numbers.
        failed: metrics that were asked for and could not be measured, and why.
        protocol: of what publication, by name.
        deviations: what differs from it.
        notes: what else a reader must not miss.
        teachers: networks that the generator's tokenizer was trained through; "unknown" stands for those that
            nobody here knows.
        ended: why not all pictures were looked at; None if they were.
        reproduction: the command and the versions of the software.
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
        """The content of `metrics.json`."""
        found = asdict(self)
        return {
            "format_version": FORMAT_VERSION,
            "imtok": version("imtok"),
            **found.pop("reproduction"),
            **found,
            "interval": f"{CONFIDENCE:.0%} percentile bootstrap over prompts, {RESAMPLES} resamples, seed 0; none with "
            f"fewer than {MIN_GROUPS}; sets have disjoint parts instead",
            "metrics": {name: plain(score) for name, score in self.metrics.items()},
        }
