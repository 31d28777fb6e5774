"""Generated pictures: against a reference set, against their prompts, the words and faces in them."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from imtok.config import ConfigError, InputError
from imtok.data.readers import open_dataset
from imtok.data.sample import Dataset, PictureError
from imtok.evaluation.failures import Failures
from imtok.evaluation.generated_meters import Generated, GeneratedMeter
from imtok.evaluation.generated_metrics import METRICS, MeterFactory
from imtok.evaluation.generated_results import ComparedWith, GeneratedEvaluation
from imtok.evaluation.meters import OriginalPicture
from imtok.evaluation.metric_names import check_names
from imtok.evaluation.preprocessing import CentreCrop, OriginalSize
from imtok.evaluation.prompt_info import PromptInfo, PromptLookup
from imtok.evaluation.protocols import EvaluationProtocol, deviations, get_protocol
from imtok.evaluation.ranks import Ranks, catch_errors, together, unwrap
from imtok.evaluation.references import Reference, open_reference
from imtok.evaluation.reproduction import command_line, versions
from imtok.evaluation.results import Score, score_of, write_results
from imtok.evaluation.set_meters import BatchFeatures, SetMeter
from imtok.evaluation.sets import EvaluationSet, check_limits
from imtok.evaluation.teachers import teachers_behind_all
from imtok.evaluation.text import TEXT_JUDGE
from imtok.layers.collective import rank


def evaluate_generated(
    pictures: str | PathLike[str],
    out: str | Path | None = None,
    *,
    reference: str | PathLike[str] | None = None,
    metrics: Sequence[str] | None = None,
    size: int | None = None,
    count: int | None = None,
    prompts: str | None = None,
    words: str | None = None,
    clip: str | Path | None = None,
    text_judge: str = TEXT_JUDGE,
    geneval: str | None = None,
    detector: str | Path | None = None,
    dpg: str | None = None,
    answerer: str | Path | None = None,
    protocol: str | None = None,
) -> GeneratedEvaluation:
    """Measure generated pictures.

    What can be measured is kept where something else fails; `failed` says what and why. Processes that torchrun has
    started share the work, as in `evaluate`.

    Args:
        pictures: anything that `open_dataset` reads: a folder as `imtok generate` fills it, an .npz file, shards.
        out: folder for `metrics.json` and `items.jsonl`; None writes nothing.
        reference: the set to compare with, likewise; or an .npz file with ADM's statistics (`mu`, `sigma`, and for
            sFID `mu_s`, `sigma_s`), which then stand for the pictures in Fréchet distances through Inception.
        metrics: names out of `METRICS`; None: those of the protocol, or all that the pictures and the networks at hand
            allow, the published network where it is here and else the one that stands in.
        size: crop the reference to centred squares of so many pixels.
        count: at most so many of the pictures, evenly spread.
        prompts: a JSONL or CSV table of pictures' files with a `prompt`; without it what their PNG files say.
        words: likewise with the `text` that a picture shall show; without it what stands in quotes in the prompts.
        clip: a folder with a CLIP of the transformers library.
        text_judge: reads the lines that the detector finds; the detector's own name takes what it reads by itself.
        geneval: GenEval's `evaluation_metadata.jsonl`, to score the pictures of its prompts.
        detector: a folder with a Mask2Former of the transformers library, for GenEval.
        dpg: DPG-Bench's `dpg_bench.csv`, likewise.
        answerer: a folder with a vision-language model of the transformers library, for DPG-Bench.
        protocol: a name out of `PROTOCOLS`; what differs from it is said.

    Raises:
        ConfigError: an unknown metric or protocol, or not one readable picture.
        DataError: a set or table that cannot be opened.
    """
    given = {
        "reference": reference,
        "metrics": metrics,
        "size": size,
        "count": count,
        "prompts": prompts,
        "words": words,
        "clip": clip,
        "text_judge": text_judge,
        "geneval": geneval,
        "detector": detector,
        "dpg": dpg,
        "answerer": answerer,
        "protocol": protocol,
    }
    with together() as ranks:
        published = None if protocol is None else get_protocol(protocol)
        if metrics is None and published is not None:
            metrics = [name for name in published.metrics if name in METRICS]
        check_names(metrics, METRICS)
        check_limits(size, count)
        brought = MeterFactory(
            clip=clip, text_judge=text_judge, geneval=geneval, detector=detector, dpg=dpg, answerer=answerer
        )
        brought.check(metrics)
        if size is not None and reference is None:
            raise ConfigError("--size crops the reference; give one, --reference REF")
        requests = PromptLookup(prompts, words)
        looked = EvaluationSet(str(pictures), open_dataset(pictures), OriginalSize(), count)
        for sample in looked.samples() if prompts or words else ():
            requests.check(sample)
        compared = None if reference is None else open_reference(str(reference))
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
        if metrics is not None:
            wanted = missed = tuple(dict.fromkeys(metrics))
        else:
            wanted = ranks.exchange(brought.metrics_at_hand(reference is not None))[0]
            missed = brought.metrics_missed(reference is not None, bool(words), bool(prompts))
        failures = Failures(wanted)
        meters = brought.open_meters(wanted, looked.total, compared, failures, ranks)
        record = _Record(
            looked=looked,
            meters=meters,
            missed=missed,
            preprocessing=OriginalSize.rule if size is None else f"reference: {CentreCrop.rule}, {size} px",
            protocol=protocol,
            statistics=() if compared is None else tuple(compared.statistics),
            reproduction={"command": command_line(evaluate_generated, ["evaluate-generated", str(pictures)], given)},
            failures=failures,
            out=None if out is None or rank() != 0 else Path(out),
        )
        try:
            _look(requests, record, ranks)
        except (InputError, OSError, KeyboardInterrupt) as error:
            if record.asked:
                record.ended = looked.how_far(error)
                record.write()
            raise
        if compared is not None:
            record.write()  # so that nothing is lost if the reference ends all
            record.reference = _compare_with(compared, looked, size, meters, failures, ranks)
        return record.write()


@dataclass(kw_only=True)
class _Record:
    """What was found so far.

    Attributes:
        missed: the metrics that somebody misses if they fail.
        statistics: that the reference brings along.
        out: where it is written; None on other ranks than the first.
        reference: what was seen of it; None as long as nothing was.
        ended: why not all pictures were looked at; None if they were.
        asked: of each picture that was.
    """

    looked: EvaluationSet
    meters: list[GeneratedMeter[Any]]
    missed: tuple[str, ...]
    preprocessing: str
    protocol: str | None
    statistics: tuple[str, ...]
    reproduction: dict[str, Any]
    failures: Failures
    out: Path | None
    reference: ComparedWith | None = None
    ended: str | None = None
    asked: list[PromptInfo] = field(default_factory=list)

    def write(self) -> GeneratedEvaluation:
        """All that can be told by now."""
        published = None if self.protocol is None else get_protocol(self.protocol)
        teachers = teachers_behind_all(one.run for one in self.asked)
        waiting = set() if self.reference else {metric for meter in _eyes(self.meters) for metric in meter.compared}
        scores = _measure(self.meters, waiting, teachers, self.failures)
        found = GeneratedEvaluation(
            pictures=replace(
                self.looked.counted(), groups=len({one.group or row for row, one in enumerate(self.asked)})
            ),
            reference=self.reference,
            preprocessing=self.preprocessing if self.reference and self.reference.looked_at else OriginalSize.rule,
            metrics=scores,
            failed={one.metric: one.why for one in self.failures.met if one.metric in self.missed},
            protocol=self.protocol,
            deviations=[] if published is None else self._deviations(published, scores),
            notes=[] if published is None else published.unchecked,
            teachers=sorted(teachers),
            ended=self.ended,
            reproduction=self.reproduction | {"versions": versions()},
        )
        if self.out is not None:
            lines = (json.dumps(item) for meter in self.meters for item in meter.items())
            write_results(found.to_json(), lines, self.out)
        return found

    def _deviations(self, published: EvaluationProtocol, scores: Mapping[str, Score]) -> list[str]:
        of_prompts = Counter(request for one in self.asked if (request := one.prompt or one.text))
        seen = None if self.reference is None else (self.reference.looked_at or self.reference).pictures
        return deviations(
            published,
            metrics={metric: score.network for metric, score in scores.items()},
            pictures=self.looked.seen,
            sizes=self.looked.sizes,
            reference_pictures=seen,
            prompts=len(of_prompts),
            pictures_of_prompts=tuple(of_prompts.values()),
            texts=tuple(one.text for one in self.asked if one.text),
            statistics=self.statistics,
        )


def _eyes(meters: Sequence[GeneratedMeter[Any]]) -> list[SetMeter]:
    """Those that look at sets as a whole."""
    return [meter for meter in meters if isinstance(meter, SetMeter)]


def _look(requests: PromptLookup, record: _Record, ranks: Ranks) -> None:
    """Show every picture to every meter; one that stumbles is left out from there on."""

    def process(shown: list[OriginalPicture]) -> tuple[list[tuple[PromptInfo, str]], dict[tuple[str, ...], Any]]:
        batch = [
            Generated(sample=one.sample, picture=one.original, prompt_info=requests.of(one.sample)) for one in shown
        ]
        found = {meter.metrics: catch_errors(meter.process, batch) for meter in record.meters}
        return [(one.prompt_info, one.sample.path) for one in batch], found

    groups: dict[str, int] = {}
    for _, (of_batch, found) in record.looked.map_batches(process, ranks, "pictures"):
        record.asked += [one for one, _ in of_batch]
        of_prompts = [groups.setdefault(one.group or path, len(groups)) for one, path in of_batch]
        for meter in list(record.meters):
            try:
                meter.add(unwrap(found[meter.metrics]), of_prompts)
            except (InputError, OSError) as error:
                record.failures.lose(meter.metrics, error)
                record.meters.remove(meter)


def _compare_with(
    reference: Reference,
    drawn: EvaluationSet,
    size: int | None,
    meters: Sequence[GeneratedMeter[Any]],
    failures: Failures,
    ranks: Ranks,
) -> ComparedWith:
    """Likewise the pictures of the reference, where meters want them; what needs none goes on without it."""
    found = ComparedWith(
        name=reference.name,
        sha256=reference.sha256,
        pictures=reference.pictures,
        statistics=sorted(reference.statistics),
        looked_at=None,
    )
    eyes = _eyes(meters)
    their_size = None if reference.source is None or not reference.statistics else _size_of(reference.source)
    if their_size is not None and drawn.sizes != {their_size}:
        width, height = their_size
        error = ConfigError(f"{reference.name}: its statistics are of {width} x {height} pixels, the pictures are not")
        failures.lose([metric for meter in eyes for metric in meter.by_statistics], error)
    curious = [meter for meter in eyes if meter.compared]
    if not curious or reference.source is None:
        return found
    fit = OriginalSize() if size is None else CentreCrop(size)
    looked = EvaluationSet(reference.name, reference.source, fit, None)

    def process(shown: list[OriginalPicture]) -> list[BatchFeatures]:
        pictures, path = [one.prepared for one in shown], shown[0].sample.path
        return [meter.extract_features(pictures, path) for meter in curious]

    try:
        for _, described in looked.map_batches(process, ranks, "reference"):
            for meter, features in zip(curious, described, strict=True):
                meter.add_reference(features)
    except (InputError, OSError) as error:
        failures.lose([metric for meter in curious for metric in meter.compared], error)
    return replace(found, looked_at=looked.counted())


def _size_of(source: Dataset) -> tuple[int, int] | None:
    """Width and height of the first picture that can be opened."""
    for row in range(len(source)):
        with suppress(PictureError):
            return source[row].width, source[row].height
    return None


def _measure(
    meters: Sequence[GeneratedMeter[Any]], waiting: Collection[str], teachers: frozenset[str], failures: Failures
) -> dict[str, Score]:
    """All but those that wait for a reference."""
    found: dict[str, Score] = {}
    for meter in meters:
        for metric in meter.metrics:
            if metric in failures.left() and metric not in waiting:
                try:
                    found[metric] = score_of(meter.measure(metric), teachers)
                except InputError as error:
                    failures.lose([metric], error)
    return found
