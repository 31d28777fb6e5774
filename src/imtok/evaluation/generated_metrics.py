"""The metrics of generated pictures by name, and the meters that measure them with what a user brings along."""

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
"""Metrics of whole sets by the network that looks; only the published one's have the published names."""
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
    """Files and networks of a user; see `evaluate_generated`."""

    clip: str | Path | None
    text_judge: str
    geneval: str | None
    detector: str | Path | None
    dpg: str | None
    answerer: str | Path | None

    def check(self, metrics: Sequence[str] | None) -> None:
        """Whether something looks at all of it.

        Args:
            metrics: that are wanted; None: all.

        Raises:
            ConfigError: nothing does.
        """
        through_clip = {*ClipMeter.metrics, *GENEVAL}
        if self.clip is not None and metrics is not None and not through_clip & set(metrics):
            raise ConfigError(f"--clip: none of the metrics looks through CLIP, such as {ClipMeter.metrics[0]}")
        of_benchmarks = {
            "geneval": (self.geneval, "detector", self.detector),
            "dpg": (self.dpg, "answerer", self.answerer),
        }
        for benchmark, (table, name, folder) in of_benchmarks.items():
            if folder is not None and table is None:
                raise ConfigError(f"--{name} looks at pictures for a benchmark; give its file too, --{benchmark}")
            if table is not None and metrics is not None and not any(one.startswith(benchmark) for one in metrics):
                raise ConfigError(f"--{benchmark}: none of the metrics is of this benchmark, such as {benchmark}")

    def metrics_at_hand(self, has_reference: bool) -> tuple[str, ...]:
        """What can be measured with the networks that are here."""
        present = {row.name for row in pretrained.status() if row.present}
        eyes = INCEPTION if INCEPTION in present else STAND_IN
        sets = [name for name, kind in SET_METRICS[eyes].items() if has_reference or kind == "classes"]
        clip = ClipMeter.metrics if self.clip is not None or CLIP_NETWORK in present else ()
        face = "magface" if FACE_METRICS["magface"] in present else "face_norm_mobilefacenet"
        return (*sets, *clip, *RenderedTextMeter.metrics, face, *self._of_benchmarks)

    def metrics_missed(self, has_reference: bool, has_words: bool, has_prompts: bool) -> tuple[str, ...]:
        """What somebody misses if it fails, having given what it needs."""
        sets = [name for names in SET_METRICS.values() for name, kind in names.items() if kind != "classes"]
        return (
            *(sets if has_reference else ()),
            *(RenderedTextMeter.metrics if has_words else ()),
            *(ClipMeter.metrics if has_prompts or self.clip is not None else ()),
            *self._of_benchmarks,
        )

    def open_meters(
        self, wanted: Sequence[str], total: int, reference: Reference | None, failures: Failures, ranks: Ranks
    ) -> list[GeneratedMeter[Any]]:
        """A meter for each network, as far as they are here: on every rank.

        Args:
            wanted: metrics.
            total: how many pictures there are.
            reference: that they are compared with.
            failures: hears of what cannot be measured.
            ranks: who share the work.
        """
        makers: list[tuple[Sequence[str], Callable[[], GeneratedMeter[Any]]]] = []
        for network, kinds in SET_METRICS.items():
            names = {name: kind for name, kind in kinds.items() if name in wanted}
            alone = [name for name, kind in names.items() if kind != "classes" and reference is None]
            if alone:
                failures.lose(alone, ConfigError("needs a set to compare with, --reference REF"))
            names = {name: kind for name, kind in names.items() if name not in alone}
            makers.append((list(names), partial(_of_sets, network, names, total, reference)))
        makers += [
            (ClipMeter.metrics, lambda: ClipMeter(_load(CLIP_NETWORK, self.clip))),
            (RenderedTextMeter.metrics, self._of_words),
            (GENEVAL, self._of_geneval),
            (DPG, self._of_dpg),
            *(((name,), partial(_of_faces, network, name)) for name, network in FACE_METRICS.items()),
        ]
        meters = []
        for served, make in makers:
            if set(served) & set(failures.left()):
                made = ranks.agree(lambda make: make(), make)
                if isinstance(made, InputError | OSError):
                    failures.lose(served, made)
                else:
                    meters.append(made)
        return meters

    @property
    def _of_benchmarks(self) -> tuple[str, ...]:
        return (*(GENEVAL if self.geneval else ()), *(DPG if self.dpg else ()))

    def _of_words(self) -> RenderedTextMeter:
        judge = None if self.text_judge == TEXT_DETECTOR else pretrained.load(self.text_judge)
        if not isinstance(judge, TextJudge | None):
            raise ConfigError(f"{self.text_judge}: cannot judge texts; see imtok weights for the text judges")
        return RenderedTextMeter(pretrained.load(TEXT_DETECTOR), judge)

    def _of_geneval(self) -> GenEvalMeter:
        if self.geneval is None:
            raise ConfigError("needs the benchmark's prompts, --geneval evaluation_metadata.jsonl")
        colours = ColoursByCLIP(_load(CLIP_NETWORK, self.clip))
        return GenEvalMeter(self.geneval, _load(OBJECT_DETECTOR, self.detector), colours)

    def _of_dpg(self) -> DPGMeter:
        if self.dpg is None:
            raise ConfigError("needs the benchmark's questions, --dpg dpg_bench.csv")
        return DPGMeter(self.dpg, _load(QUESTION_ANSWERER, self.answerer))


def _of_sets(network: str, kinds: Mapping[str, str], total: int, reference: Reference | None) -> SetMeter:
    given = {} if reference is None or network != INCEPTION else reference.statistics
    return SetMeter(_load(network), kinds, total, given)


def _of_faces(network: str, metric: str) -> FaceNormMeter:
    return FaceNormMeter(pretrained.load(FACE_DETECTOR), pretrained.load(network), metric)


def _load(name: str, file: str | Path | None = None) -> Any:
    return pretrained.load(name, file).to(best_device())
