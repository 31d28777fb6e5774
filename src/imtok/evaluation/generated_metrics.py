"""The metrics of generated pictures by name, and the meters that measure them with the user's files and networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imtok import pretrained
from imtok.config import ConfigError, InputError
from imtok.data.annotate import FACE_DETECTOR, TEXT_DETECTOR
from imtok.evaluation.benchmark_meters import DPG, GENEVAL, DPGMeter, GenEvalMeter
from imtok.evaluation.failures import Failures
from imtok.evaluation.generated_meters import ClipMeter, FaceNormMeter, GeneratedMeter
from imtok.evaluation.geneval import ColoursByCLIP
from imtok.evaluation.ranks import Ranks
from imtok.evaluation.references import INCEPTION, Reference
from imtok.evaluation.rendered import RenderedTextMeter
from imtok.evaluation.set_meters import SetMeter
from imtok.evaluation.text import TextJudge
from imtok.layers.collective import best_device

STAND_IN = "vision/efficientnet_lite0"
SET_METRICS = {
    INCEPTION: {
        "fid": "frechet",
        "sfid": "spatial",
        "inception_score": "classes",
        "precision": "precision",
        "recall": "recall",
    },
    STAND_IN: {
        "fd_efficientnet_lite0": "frechet",
        "sfd_efficientnet_lite0": "spatial",
        "class_score_efficientnet_lite0": "classes",
        "precision_efficientnet_lite0": "precision",
        "recall_efficientnet_lite0": "recall",
    },
}
"""Metrics of whole sets by feature network, and their kinds; only Inception's have the published names."""
FACE_METRICS = {"magface": "face_quality/magface", "face_norm_mobilefacenet": "face_features/mobilefacenet"}
METRICS = (
    *(name for names in SET_METRICS.values() for name in names),
    *ClipMeter.metrics,
    *RenderedTextMeter.metrics,
    *FACE_METRICS,
    *GENEVAL,
    *DPG,
)
CLIP_NETWORK = "clip/transformers"
OBJECT_DETECTOR, QUESTION_ANSWERER = "object_detector/mask2former", "question_answerer/transformers"


@dataclass(frozen=True, kw_only=True)
class MeterFactory:
    """Creates meters from the files and networks of a user; for the fields see `evaluate_generated`."""

    clip: str | Path | None
    text_judge: str
    geneval: str | None
    detector: str | Path | None
    dpg: str | None
    answerer: str | Path | None

    def check(self, metrics: Sequence[str] | None) -> None:
        """Check that every given file and network is used by a metric.

        Args:
            metrics: wanted metrics; None: all.

        Raises:
            ConfigError: a file or network is used by no metric, or the file of its benchmark is missing.
        """
        clip_metrics = {*ClipMeter.metrics, *GENEVAL}
        if self.clip is not None and metrics is not None and not clip_metrics & set(metrics):
            raise ConfigError(f"--clip: none of the metrics looks through CLIP, such as {ClipMeter.metrics[0]}")
        benchmarks = {
            "geneval": (self.geneval, "detector", self.detector),
            "dpg": (self.dpg, "answerer", self.answerer),
        }
        for benchmark, (table, name, folder) in benchmarks.items():
            if folder is not None and table is None:
                raise ConfigError(f"--{name} looks at pictures for a benchmark; give its file too, --{benchmark}")
            if (
                table is not None
                and metrics is not None
                and not any(metric.startswith(benchmark) for metric in metrics)
            ):
                raise ConfigError(f"--{benchmark}: none of the metrics is of this benchmark, such as {benchmark}")

    def metrics_at_hand(self, has_reference: bool) -> tuple[str, ...]:
        """Return the metrics that can be measured with the networks that are available."""
        present = {row.name for row in pretrained.status() if row.present}
        network = INCEPTION if INCEPTION in present else STAND_IN
        sets = [name for name, kind in SET_METRICS[network].items() if has_reference or kind == "classes"]
        clip = ClipMeter.metrics if self.clip is not None or CLIP_NETWORK in present else ()
        face = "magface" if FACE_METRICS["magface"] in present else "face_norm_mobilefacenet"
        return (*sets, *clip, *RenderedTextMeter.metrics, face, *self._benchmark_metrics)

    def metrics_missed(self, has_reference: bool, has_words: bool, has_prompts: bool) -> tuple[str, ...]:
        """Return the metrics whose failure is reported, because the user has given the inputs that they need."""
        sets = [name for names in SET_METRICS.values() for name, kind in names.items() if kind != "classes"]
        return (
            *(sets if has_reference else ()),
            *(RenderedTextMeter.metrics if has_words else ()),
            *(ClipMeter.metrics if has_prompts or self.clip is not None else ()),
            *self._benchmark_metrics,
        )

    def open_meters(
        self, wanted: Sequence[str], total: int, reference: Reference | None, failures: Failures, ranks: Ranks
    ) -> list[GeneratedMeter[Any]]:
        """Create the meters of the wanted metrics; a meter that fails on one rank is left out on all.

        Args:
            wanted: names of the wanted metrics.
            total: number of generated pictures.
            reference: the set that they are compared with, if there is one.
            failures: receives the metrics that cannot be measured.
            ranks: the processes that share the work.
        """
        makers: list[tuple[Sequence[str], Callable[[], GeneratedMeter[Any]]]] = []
        for network, kinds in SET_METRICS.items():
            names = {name: kind for name, kind in kinds.items() if name in wanted}
            lacking = [name for name, kind in names.items() if kind != "classes" and reference is None]
            if lacking:
                failures.lose(lacking, ConfigError("needs a set to compare with, --reference REF"))
            names = {name: kind for name, kind in names.items() if name not in lacking}
            makers.append((list(names), partial(_set_meter, network, names, total, reference)))
        makers += [
            (ClipMeter.metrics, lambda: ClipMeter(_load(CLIP_NETWORK, self.clip))),
            (RenderedTextMeter.metrics, self._rendered_text_meter),
            (GENEVAL, self._geneval_meter),
            (DPG, self._dpg_meter),
            *(((name,), partial(_face_norm_meter, network, name)) for name, network in FACE_METRICS.items()),
        ]
        meters = []
        for metrics, make in makers:
            if set(metrics) & set(failures.left()):
                meter = ranks.agree(lambda make: make(), make)
                if isinstance(meter, InputError | OSError):
                    failures.lose(metrics, meter)
                else:
                    meters.append(meter)
        return meters

    @property
    def _benchmark_metrics(self) -> tuple[str, ...]:
        return (*(GENEVAL if self.geneval else ()), *(DPG if self.dpg else ()))

    def _rendered_text_meter(self) -> RenderedTextMeter:
        judge = None if self.text_judge == TEXT_DETECTOR else pretrained.load(self.text_judge)
        if not isinstance(judge, TextJudge | None):
            raise ConfigError(f"{self.text_judge}: cannot judge texts; see imtok weights for the text judges")
        return RenderedTextMeter(pretrained.load(TEXT_DETECTOR), judge)

    def _geneval_meter(self) -> GenEvalMeter:
        if self.geneval is None:
            raise ConfigError("needs the benchmark's prompts, --geneval evaluation_metadata.jsonl")
        colours = ColoursByCLIP(_load(CLIP_NETWORK, self.clip))
        return GenEvalMeter(self.geneval, _load(OBJECT_DETECTOR, self.detector), colours)

    def _dpg_meter(self) -> DPGMeter:
        if self.dpg is None:
            raise ConfigError("needs the benchmark's questions, --dpg dpg_bench.csv")
        return DPGMeter(self.dpg, _load(QUESTION_ANSWERER, self.answerer))


def _set_meter(network: str, kinds: Mapping[str, str], total: int, reference: Reference | None) -> SetMeter:
    statistics = {} if reference is None or network != INCEPTION else reference.statistics
    return SetMeter(_load(network), kinds, total, statistics)


def _face_norm_meter(network: str, metric: str) -> FaceNormMeter:
    return FaceNormMeter(pretrained.load(FACE_DETECTOR), pretrained.load(network), metric)


def _load(name: str, file: str | Path | None = None) -> Any:
    return pretrained.load(name, file).to(best_device())
