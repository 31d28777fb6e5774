"""Evaluation of all reconstructors on one set: run the meters batch by batch and turn their findings into scores."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from imtok.config import InputError
from imtok.data.pictures import downscale
from imtok.data.sample import Dataset
from imtok.evaluation.best_worst import WIDEST, BestWorstCases, Case, part_of
from imtok.evaluation.failures import Failures
from imtok.evaluation.meters import CodeMeter, Measurement, Meter, OriginalPicture, PixelMeter, ReconstructedPicture
from imtok.evaluation.metric_names import family
from imtok.evaluation.preprocessing import Preprocessing
from imtok.evaluation.ranks import USER_ERRORS, Ranks, catch_errors, say
from imtok.evaluation.reconstructors import File, Reconstructor
from imtok.evaluation.results import Comparison, Example, Result, score_of
from imtok.evaluation.sets import DatasetSummary, EvaluationSet
from imtok.evaluation.statistics import paired_difference

_WITH_CAPTION = ("bits_per_pixel_with_caption", "caption_bits")
_RATES = ("bits_per_pixel", *_WITH_CAPTION)
_EXAMPLES = 12
"""Number of example pictures of each set in the report, evenly spread over the set and not hand-picked."""
_PARTS = 6
"""Maximum number of words, and of faces, of an example that are shown enlarged."""


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The results of one set."""

    data: DatasetSummary
    results: list[Result]
    comparisons: list[Comparison]
    examples: list[Example]
    cases: list[Case]
    items: list[str]
    """Lines of `items.jsonl`; kept as text, which takes a third of the memory."""
    sizes: Collection[tuple[int, int]]
    """Widths and heights of the pictures as they enter the tokenizer."""
    ended_by: InputError | OSError | KeyboardInterrupt | None = None
    """The error or interrupt that ended the evaluation before the rest of the set was measured."""


@dataclass(frozen=True, kw_only=True)
class _BatchFindings:
    """The findings of one process on a batch; they are sent to the other processes, so they hold few pixels."""

    measured: list[Any]
    """Findings of each meter, or its error."""
    items: list[dict[str, Any]]
    cases: list[Case]
    """Best and worst cases that surpass those found before."""
    examples: dict[int, Example]
    """Examples by row."""
    files: list[tuple[str, File, str]]
    """Reconstructor, file that it read, and path of the original."""
    failed: dict[str, InputError | OSError]
    """Errors of the reconstructors that could not reconstruct the batch."""


def evaluate_set(
    name: str,
    source: Dataset,
    reconstructors: Sequence[Reconstructor],
    metrics: Sequence[str] | None,
    create_network_meters: Callable[[int], list[Meter[Any]]],
    fit: Preprocessing,
    count: int | None,
    failures: Failures,
    ranks: Ranks,
) -> SetResult:
    """Measure every reconstructor on a set, or on the part of it that was processed before an error or Ctrl-C.

    A reconstructor that fails is left out of the results, including what was measured of it before; so are the metrics
    of a meter that fails. Each reconstructor is compared with the first one, or with the one named by its
    `compared_with`, unless that one has failed.

    Args:
        name: name of the set.
        source: dataset with its pictures.
        reconstructors: the reconstructors to measure; self-checks take no part in comparisons.
        metrics: names of the metrics to keep; None: all.
        create_network_meters: function from the number of pictures to the meters that are used besides those of pixels
            and codes.
        fit: how pictures enter the tokenizer.
        count: maximum number of pictures, evenly spread over the set.
        failures: receives the reconstructors and meters that fail, and the reason if the set ends early.
        ranks: the processes that share the work.

    Raises:
        InputError: no picture was processed, or all reconstructors but the self-checks have failed.
        OSError: see `InputError`.
        KeyboardInterrupt: see `InputError`.
    """
    evaluation = _SetEvaluation(
        EvaluationSet(name, source, fit, count), reconstructors, metrics, create_network_meters, fit, failures, ranks
    )
    try:
        for groups, found in evaluation.pictures.map_batches(evaluation.process, ranks):
            evaluation.add(found, groups)
    except (InputError, OSError, KeyboardInterrupt) as error:
        if not evaluation.pictures.seen or evaluation.all_competitors_failed():
            raise
        failures.add(f"ended {evaluation.pictures.how_far(error)}", data=name)
        return replace(evaluation.part(), ended_by=error)
    return evaluation.part()


class _SetEvaluation:
    """A set during its evaluation: the remaining reconstructors, and the findings so far."""

    def __init__(
        self,
        pictures: EvaluationSet,
        reconstructors: Sequence[Reconstructor],
        metrics: Sequence[str] | None,
        create_network_meters: Callable[[int], list[Meter[Any]]],
        fit: Preprocessing,
        failures: Failures,
        ranks: Ranks,
    ) -> None:
        self.pictures = pictures
        self._metrics, self._fit, self._failures = metrics, fit, failures
        self._reconstructors = {r.name: r for r in reconstructors}
        self._competitors = [r.name for r in reconstructors if not r.is_check]
        self._failed: set[str] = set()
        self._begin(ranks)
        self._codes = CodeMeter(  # after `_begin`, since codecs with a target rate set `rate_note` there
            {r.name: r.codebook_sizes for r in reconstructors}, {r.name: r.rate_note for r in reconstructors}
        )
        self._meters = [PixelMeter(), self._codes, *create_network_meters(pictures.total)]
        self._failed_meters: set[int] = set()
        self._best_worst = BestWorstCases(pictures.name, self._competitors)
        self._rows = pictures.evenly_spread(_EXAMPLES)
        self._examples: dict[int, Example] = {}
        self._items: list[str] = []

    def _begin(self, ranks: Ranks) -> None:
        """Call `begin` on each reconstructor, and drop those that fail."""
        for reconstructor in self._reconstructors.values():
            if error := ranks.agree(reconstructor.begin, self.pictures):
                self._drop(reconstructor.name, error)
            elif reconstructor.rate_note:
                say(f"{self.pictures.name}, {reconstructor.name}: {reconstructor.rate_note}")

    def process(self, batch: list[OriginalPicture]) -> _BatchFindings:
        """Measure a batch; changes no state, so any process can do it."""
        set_name = self.pictures.name
        outputs = {r.name: catch_errors(partial(_reconstruct, r, self._fit), batch) for r in self._remaining()}
        errors = {name: output for name, output in outputs.items() if isinstance(output, USER_ERRORS)}
        reconstructions = {name: output for name, output in outputs.items() if not isinstance(output, USER_ERRORS)}
        measured = [catch_errors(partial(meter.process, batch), reconstructions) for meter in self._meters]
        items = [
            item
            for meter, output in zip(self._meters, measured, strict=True)
            if not isinstance(output, USER_ERRORS)
            for item in meter.items(batch, output)
        ]
        updated, previous = self._best_worst.copy(), self._best_worst.cases()
        updated.see(batch, reconstructions, items)
        return _BatchFindings(
            measured=measured,
            items=[{"data": set_name} | item for item in items],
            cases=[case for case in updated.cases() if case not in previous],
            examples={
                original.row: self._example(
                    original, {name: pictures[i] for name, pictures in reconstructions.items()}, items
                )
                for i, original in enumerate(batch)
                if original.row in self._rows
            },
            files=[
                (name, picture.output.file, original.sample.path)
                for name, pictures in reconstructions.items()
                for picture, original in zip(pictures, batch, strict=True)
                if picture.output.file is not None
            ],
            failed=errors,
        )

    def add(self, found: _BatchFindings, groups: Sequence[int]) -> None:
        """Add the findings on the next batch."""
        for name, error in found.failed.items():
            self._drop(name, error)
        for index, measured in enumerate(found.measured):
            if index not in self._failed_meters and isinstance(measured, USER_ERRORS):
                self._failed_meters.add(index)
                self._failures.add(measured, data=self.pictures.name, metric=self._meters[index].what)
            elif index not in self._failed_meters:
                self._meters[index].add(measured, groups)
        for case in found.cases:
            self._best_worst.add(case)
        for name, file, path in found.files:
            if name not in self._failed and (
                error := catch_errors(partial(self._reconstructors[name].add, file), path)
            ):
                self._drop(name, error)
        self._examples |= found.examples
        self._items += map(json.dumps, found.items)

    def part(self) -> SetResult:
        """Return the results of the set, without the reconstructors that have failed."""
        remaining, failed = self._remaining(), self._failed
        for reconstructor in remaining:
            if missing_caption := self._codes.missing_caption(reconstructor.name):
                of = f"{missing_caption} of {self.pictures.seen} pictures"
                say(f"{self.pictures.name}, {reconstructor.name}: is conditioned on captions, and {of} have none")
        meters = [meter for index, meter in enumerate(self._meters) if index not in self._failed_meters]
        measured = {r.name: _measurements(meters, r.name, self._metrics) for r in remaining}
        for metric in self._metrics or ():
            if not any(metric in map(family, found) for found in measured.values()):
                say(f"{self.pictures.name}: nothing to measure {metric} on")
        results = [
            Result(
                tokenizer=r.name,
                data=self.pictures.name,
                is_check=r.is_check,
                is_codec=r.is_codec,
                metrics={metric: score_of(m, r.teachers) for metric, m in measured[r.name].items()},
            )
            for r in remaining
        ]
        taught = {
            (result.tokenizer, metric) for result in results for metric, score in result.metrics.items() if score.taught
        }
        return SetResult(
            data=self.pictures.counted(),
            results=results,
            comparisons=[
                replace(
                    comparison, taught=not taught.isdisjoint({(r.name, comparison.metric), (other, comparison.metric)})
                )
                for r in remaining
                if not r.is_check and (other := r.compared_with or self._competitors[0]) in measured and other != r.name
                for comparison in _comparisons(self.pictures.name, r.name, other, measured)
            ],
            examples=[example.without(failed) for example in self._examples.values()],
            cases=[case for case in self._best_worst.cases() if failed.isdisjoint(case.reconstructions)],
            items=[_without(failed, line) for line in self._items] if failed else self._items,
            sizes=self.pictures.sizes,
        )

    def _example(
        self,
        original: OriginalPicture,
        reconstructions: Mapping[str, ReconstructedPicture],
        items: Sequence[dict[str, Any]],
    ) -> Example:
        """Return a picture with the reconstructions of all reconstructors but the self-checks."""
        restored = {
            name: reconstruction.restored
            for name, reconstruction in reconstructions.items()
            if name in self._competitors
        }
        pictures = {"original": original.original, **restored}
        own_items = [item for item in items if item["row"] == original.row]
        enlarged = [item for kind in ("word", "face") for item in [i for i in own_items if i["kind"] == kind][:_PARTS]]
        return Example(
            data=self.pictures.name,
            path=original.sample.path,
            pictures={name: downscale(picture, WIDEST) for name, picture in pictures.items()},
            texts={
                name: reconstruction.output.text
                for name, reconstruction in reconstructions.items()
                if reconstruction.output.text is not None
            },
            parts=[(item, {name: part_of(item, picture) for name, picture in pictures.items()}) for item in enlarged],
        )

    def all_competitors_failed(self) -> bool:
        """Whether all reconstructors but the self-checks have failed."""
        return self._failed.issuperset(self._competitors)

    def _remaining(self) -> list[Reconstructor]:
        return [r for r in self._reconstructors.values() if r.name not in self._failed]

    def _drop(self, name: str, error: InputError | OSError) -> None:
        """Leave a reconstructor out from here on.

        Raises:
            InputError: all reconstructors but the self-checks have failed.
            OSError: see `InputError`.
        """
        if name not in self._failed:
            self._failed.add(name)
            if self.all_competitors_failed():
                raise error
            self._failures.add(error, tokenizer=name, data=self.pictures.name)


def _without(failed: Collection[str], line: str) -> str:
    """Remove the outcomes of some reconstructors from a line of `items.jsonl`."""
    item = json.loads(line)
    outcomes = {key: value for key, value in item.items() if key in ("psnr", "read", "similarity")}
    rest = {
        key: {name: outcome for name, outcome in by_name.items() if name not in failed}
        for key, by_name in outcomes.items()
    }
    return json.dumps(item | rest)


def _reconstruct(
    reconstructor: Reconstructor, fit: Preprocessing, batch: Sequence[OriginalPicture]
) -> list[ReconstructedPicture]:
    own_size = reconstructor.at_own_size
    entering = [picture.original if own_size else picture.prepared for picture in batch]
    reconstructions = []
    for output, picture in zip(
        reconstructor.reconstruct(entering, [picture.sample for picture in batch]), batch, strict=True
    ):
        restored = output.picture if own_size else fit.restore(output.picture, picture.original)
        square = fit.prepare(restored) if own_size else output.picture
        content = fit.content(square, picture.original)
        reconstructions.append(
            ReconstructedPicture(output=replace(output, picture=square), content=content, restored=restored)
        )
    return reconstructions


def _measurements(meters: Sequence[Meter[Any]], name: str, metrics: Sequence[str] | None) -> dict[str, Measurement]:
    """Return the requested measurements of a reconstructor.

    A metric of a tokenizer with several codebooks has one measurement per codebook (`codebook_usage_1`).
    If `bits_per_pixel` is requested, the caption's rate metrics are returned too, if there are any.
    """
    found = {metric: measured for meter in meters for metric, measured in meter.results(name).items()}
    if metrics is None:
        return found
    wanted = {*metrics, *(_WITH_CAPTION if "bits_per_pixel" in metrics else ())}
    return {metric: measured for metric, measured in found.items() if family(metric) in wanted}


def _comparisons(
    data: str, tokenizer: str, baseline: str, measured: Mapping[str, Mapping[str, Measurement]]
) -> Iterator[Comparison]:
    """Compare a tokenizer with another on each metric that has enough groups for an interval."""
    for metric, theirs in measured[baseline].items():
        ours = measured[tokenizer].get(metric)
        if ours is None or ours.items is None or theirs.items is None or metric in _RATES:
            continue
        finite = np.isfinite(ours.items.values) & np.isfinite(theirs.items.values)
        if not finite.any():
            continue
        ours_finite = ours.items.where(finite)
        interval = paired_difference(ours_finite, theirs.items.where(finite))
        if np.isnan(interval.low):
            continue
        yield Comparison(
            tokenizer=tokenizer,
            baseline=baseline,
            data=data,
            metric=metric,
            difference=interval.value,
            low=interval.low,
            high=interval.high,
            count=ours_finite.number_of_items(),
        )
