"""Evaluation of generated pictures: against a reference set, against their prompts, and by their words and faces."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from imtok.config import ConfigError, InputError
from imtok.data.addresses import sha256_of_address
from imtok.data.readers import open_dataset
from imtok.data.rows import as_unicode
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
    """Evaluate generated pictures.

    If a metric fails, the others are still computed; `failed` names it with the reason. Under torchrun, the processes
    share the work, as in `evaluate`.

    Args:
        pictures: anything that `open_dataset` reads: an output folder of `imtok generate`, an .npz file, shards.
        out: output folder for `metrics.json` and `items.jsonl`; None writes nothing.
        reference: the set to compare with: anything that `open_dataset` reads, or an .npz file with ADM's statistics
            (`mu`, `sigma`, and for sFID `mu_s`, `sigma_s`), which then replace the reference's pictures in Fréchet
            distances with Inception.
        metrics: names from `METRICS`; None: those of the protocol, or all that the pictures and the available networks
            allow, with the published network if it is available, otherwise with its substitute.
        size: side in pixels of the centred squares to which the reference is cropped.
        count: maximum number of pictures, evenly spread over the set.
        prompts: a JSONL or CSV table with the columns `file` and `prompt`; a picture that it does not list has the
            prompt stored in its PNG file, or else its first caption.
        words: a JSONL or CSV table with the columns `file` and `text`, the text that the picture should show; for a
            picture that it does not list, the quoted text in its prompt.
        clip: a folder with a CLIP of the transformers library.
        text_judge: network that reads the lines that the text detector finds; if it is the detector's name, the
            detector's own reading is used.
        geneval: GenEval's `evaluation_metadata.jsonl`, to score the pictures of its prompts.
        detector: a folder with a Mask2Former of the transformers library, for GenEval.
        dpg: DPG-Bench's `dpg_bench.csv`, to score the pictures of its prompts.
        answerer: a folder with a vision-language model of the transformers library, for DPG-Bench.
        protocol: a name from `PROTOCOLS`; deviations from the protocol are reported.

    Raises:
        ConfigError: a metric or protocol is unknown, options are incompatible, or no picture can be read.
        DataError: a set or table cannot be opened.
    """
    options = {
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
        factory = MeterFactory(
            clip=clip, text_judge=text_judge, geneval=geneval, detector=detector, dpg=dpg, answerer=answerer
        )
        factory.check(metrics)
        if size is not None and reference is None:
            raise ConfigError("--size crops the reference; give one, --reference REF")
        lookup = PromptLookup(prompts, words)
        generated = EvaluationSet(str(pictures), open_dataset(pictures), OriginalSize(), count)
        for sample in generated.samples() if prompts or words else ():
            lookup.check(sample)
        compared = None if reference is None else open_reference(str(reference))
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
        if metrics is not None:
            wanted = missed = tuple(dict.fromkeys(metrics))
        else:
            wanted = ranks.exchange(factory.metrics_at_hand(reference is not None))[0]
            missed = factory.metrics_missed(reference is not None, bool(words), bool(prompts))
        failures = Failures(wanted)
        meters = factory.open_meters(wanted, generated.total, compared, failures, ranks)
        record = _Record(
            looked=generated,
            meters=meters,
            missed=missed,
            preprocessing=OriginalSize.rule if size is None else f"reference: {CentreCrop.rule}, {size} px",
            protocol=protocol,
            statistics=() if compared is None else tuple(compared.statistics),
            reproduction={
                "command": command_line(evaluate_generated, ["evaluate-generated", str(pictures)], options),
                "tables": _hashes_of([table for table in (prompts, words, geneval, dpg) if table is not None]),
            },
            failures=failures,
            out=None if out is None or rank() != 0 else Path(out),
        )
        try:
            _process_pictures(lookup, record, ranks)
        except (InputError, OSError, KeyboardInterrupt) as error:
            if record.asked:
                record.ended = generated.how_far(error)
                record.write()
            raise
        if compared is not None:
            _check_size_of_statistics(compared, generated, meters, failures)
            record.write()  # an error in the reference may end the evaluation
            record.reference = _compare_with(compared, generated, size, meters, failures, ranks)
        return record.write()


@dataclass(kw_only=True)
class _Record:
    """The evaluation so far.

    Attributes:
        looked: the generated pictures.
        meters: the meters that have not failed.
        missed: metrics that are reported as failed if they cannot be measured.
        preprocessing: description of the reference's preprocessing.
        protocol: name of the protocol, if one was given.
        statistics: kinds of statistics that the reference provides.
        reproduction: the command, and the SHA-256 of each table.
        failures: metrics that have failed so far.
        out: output folder; None without one, and on all ranks but the first.
        reference: summary of the reference; None until the pictures are compared with it.
        ended: why not all pictures were processed; None if all were.
        asked: prompt information of each processed picture.
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
        """Return the results so far, and write them if there is an output folder."""
        published = None if self.protocol is None else get_protocol(self.protocol)
        teachers = teachers_behind_all(info.run for info in self.asked)
        waiting = (
            set() if self.reference else {metric for meter in _set_meters(self.meters) for metric in meter.compared}
        )
        scores = _measure(self.meters, waiting, teachers, self.failures)
        found = GeneratedEvaluation(
            pictures=replace(
                self.looked.counted(), groups=len({info.group or row for row, info in enumerate(self.asked)})
            ),
            reference=self.reference,
            preprocessing=self.preprocessing if self.reference and self.reference.looked_at else OriginalSize.rule,
            metrics=scores,
            failed={failure.metric: failure.why for failure in self.failures.met if failure.metric in self.missed},
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
        pictures_per_prompt = Counter(prompt for info in self.asked if (prompt := info.prompt or info.text))
        reference_pictures = None if self.reference is None else (self.reference.looked_at or self.reference).pictures
        return deviations(
            published,
            metrics={metric: score.network for metric, score in scores.items()},
            pictures=self.looked.seen,
            sizes=self.looked.sizes,
            reference_pictures=reference_pictures,
            prompts=len(pictures_per_prompt),
            pictures_of_prompts=tuple(pictures_per_prompt.values()),
            texts=tuple(info.text for info in self.asked if info.text),
            statistics=self.statistics,
        )


def _hashes_of(tables: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each readable table; an unreadable one fails the metrics that need it."""
    found: dict[str, str] = {}
    for table in tables:
        with suppress(InputError, OSError):
            found[as_unicode(table)] = sha256_of_address(table)
    return found


def _set_meters(meters: Sequence[GeneratedMeter[Any]]) -> list[SetMeter]:
    """Return the meters that measure sets as a whole."""
    return [meter for meter in meters if isinstance(meter, SetMeter)]


def _process_pictures(lookup: PromptLookup, record: _Record, ranks: Ranks) -> None:
    """Process every picture with every meter; a meter that fails is removed and its metrics recorded as failures."""

    def process(pictures: list[OriginalPicture]) -> tuple[list[tuple[PromptInfo, str]], dict[tuple[str, ...], Any]]:
        batch = [
            Generated(sample=picture.sample, picture=picture.original, prompt_info=lookup.of(picture.sample))
            for picture in pictures
        ]
        found = {meter.metrics: catch_errors(meter.process, batch) for meter in record.meters}
        return [(picture.prompt_info, picture.sample.path) for picture in batch], found

    groups: dict[str, int] = {}
    for _, (infos, found) in record.looked.map_batches(process, ranks, "pictures"):
        record.asked += [info for info, _ in infos]
        picture_groups = [groups.setdefault(info.group or path, len(groups)) for info, path in infos]
        for meter in list(record.meters):
            try:
                meter.add(unwrap(found[meter.metrics]), picture_groups)
            except (InputError, OSError) as error:
                record.failures.lose(meter.metrics, error)
                record.meters.remove(meter)


def _check_size_of_statistics(
    reference: Reference, generated: EvaluationSet, meters: Sequence[GeneratedMeter[Any]], failures: Failures
) -> None:
    """Record the metrics by given statistics as failed if these are of pictures of another size."""
    size = None if reference.source is None or not reference.statistics else _size_of(reference.source)
    if size is not None and generated.sizes != {size}:
        width, height = size
        error = ConfigError(f"{reference.name}: its statistics are of {width} x {height} pixels, the pictures are not")
        failures.lose([metric for meter in _set_meters(meters) for metric in meter.by_statistics], error)


def _compare_with(
    reference: Reference,
    generated: EvaluationSet,
    size: int | None,
    meters: Sequence[GeneratedMeter[Any]],
    failures: Failures,
    ranks: Ranks,
) -> ComparedWith:
    """Process the reference's pictures with the meters that need them; an error fails only metrics that need them.

    Args:
        reference: the reference.
        generated: the generated pictures, already processed.
        size: side of the squares to which the reference's pictures are cropped; None: no crop.
        meters: the meters that have not failed.
        failures: receives the metrics that cannot be measured.
        ranks: the processes that share the work.
    """
    summary = ComparedWith(
        name=reference.name,
        sha256=reference.sha256,
        pictures=reference.pictures,
        statistics=sorted(reference.statistics),
        looked_at=None,
    )
    comparing = [meter for meter in _set_meters(meters) if meter.compared]
    if not comparing or reference.source is None:
        return summary
    fit = OriginalSize() if size is None else CentreCrop(size)
    reference_set = EvaluationSet(reference.name, reference.source, fit, None)

    def process(batch: list[OriginalPicture]) -> list[BatchFeatures]:
        pictures, path = [picture.prepared for picture in batch], batch[0].sample.path
        return [meter.extract_features(pictures, path) for meter in comparing]

    try:
        for _, batch_features in reference_set.map_batches(process, ranks, "reference"):
            for meter, features in zip(comparing, batch_features, strict=True):
                meter.add_reference(features)
    except (InputError, OSError) as error:
        failures.lose([metric for meter in comparing for metric in meter.compared], error)
    return replace(summary, looked_at=reference_set.counted())


def _size_of(source: Dataset) -> tuple[int, int] | None:
    """Return width and height of the first picture that can be opened; None if none can."""
    for row in range(len(source)):
        with suppress(PictureError):
            return source[row].width, source[row].height
    return None


def _measure(
    meters: Sequence[GeneratedMeter[Any]], waiting: Collection[str], teachers: frozenset[str], failures: Failures
) -> dict[str, Score]:
    """Compute all metrics that have not failed, except those in `waiting`, which still need the reference."""
    scores: dict[str, Score] = {}
    for meter in meters:
        for metric in meter.metrics:
            if metric in failures.left() and metric not in waiting:
                try:
                    scores[metric] = score_of(meter.measure(metric), teachers)
                except InputError as error:
                    failures.lose([metric], error)
    return scores
