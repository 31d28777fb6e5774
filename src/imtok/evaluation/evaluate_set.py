"""One set of pictures through every reconstructor: who looks at what, and how what is found becomes numbers."""

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
"""Pictures of each set that the report shows: evenly spread over the set, none chosen."""
_PARTS = 6
"""Words, and faces, of one of them that are shown enlarged."""


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What one set contributes."""

    data: DatasetSummary
    results: list[Result]
    comparisons: list[Comparison]
    examples: list[Example]
    cases: list[Case]
    items: list[str]
    """Lines of `items.jsonl`; as text they take a third of the memory."""
    sizes: Collection[tuple[int, int]]
    """Widths and heights of the pictures as they enter."""
    ended_by: InputError | OSError | KeyboardInterrupt | None = None
    """What kept the rest of the set from being measured."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What one process finds on a batch; it travels to the others, so it holds few pixels."""

    measured: list[Any]
    """By each meter; an error where it could not."""
    items: list[dict[str, Any]]
    cases: list[Case]
    """That go beyond those found before."""
    examples: dict[int, Example]
    """By row."""
    files: list[tuple[str, File, str]]
    """By whom each was read, and for which original."""
    failed: dict[str, InputError | OSError]
    """Reconstructors that could not reconstruct them."""


def evaluate_set(
    name: str,
    source: Dataset,
    reconstructors: Sequence[Reconstructor],
    metrics: Sequence[str] | None,
    of_networks: Callable[[int], list[Meter[Any]]],
    fit: Preprocessing,
    count: int | None,
    failures: Failures,
    ranks: Ranks,
) -> SetResult:
    """Measure every reconstructor on a set, or on as much of it as was seen before an error or Ctrl-C.

    One that fails is left out, whatever was measured of it before, and so is what a meter measures that fails. A
    reconstructor is compared with the first, or with whom it names, unless that has failed.

    Args:
        name: of the set.
        source: of its pictures.
        reconstructors: the checks are compared with nobody.
        metrics: which to keep; None: all.
        of_networks: makes the meters beside those of pixels and codes, for so many pictures.
        fit: how pictures enter.
        count: at most so many pictures, evenly spread.
        failures: get to know of reconstructors and meters that fail, and of a set that ends early.
        ranks: who share the work.

    Raises:
        InputError: nothing was seen of the set, or nobody but checks is left.
        OSError: likewise.
        KeyboardInterrupt: likewise.
    """
    one = _OneSet(EvaluationSet(name, source, fit, count), reconstructors, metrics, of_networks, fit, failures, ranks)
    try:
        for groups, found in one.pictures.map_batches(one.process, ranks):
            one.add(found, groups)
    except (InputError, OSError, KeyboardInterrupt) as error:
        if not one.pictures.seen or one.is_lost():
            raise
        failures.add(f"ended {one.pictures.how_far(error)}", data=name)
        return replace(one.part(), ended_by=error)
    return one.part()


class _OneSet:
    """A set while it is looked at: who is left, and what was found so far."""

    def __init__(
        self,
        pictures: EvaluationSet,
        reconstructors: Sequence[Reconstructor],
        metrics: Sequence[str] | None,
        of_networks: Callable[[int], list[Meter[Any]]],
        fit: Preprocessing,
        failures: Failures,
        ranks: Ranks,
    ) -> None:
        self.pictures = pictures
        self._metrics, self._fit, self._failures = metrics, fit, failures
        self._reconstructors = {c.name: c for c in reconstructors}
        self._competitors = [c.name for c in reconstructors if not c.is_check]
        self._failed: set[str] = set()
        self._begin(ranks)
        self._codes = CodeMeter(  # comes after: some know their rate only when they know the set
            {c.name: c.codebook_sizes for c in reconstructors}, {c.name: c.rate_note for c in reconstructors}
        )
        self._meters = [PixelMeter(), self._codes, *of_networks(pictures.total)]
        self._broken: set[int] = set()
        self._keeper = BestWorstCases(pictures.name, self._competitors)
        self._rows = pictures.evenly_spread(_EXAMPLES)
        self._examples: dict[int, Example] = {}
        self._items: list[str] = []

    def _begin(self, ranks: Ranks) -> None:
        """Each reconstructor gets to know the set."""
        for reconstructor in self._reconstructors.values():
            if error := ranks.agree(reconstructor.begin, self.pictures):
                self._drop(reconstructor.name, error)
            elif reconstructor.rate_note:
                say(f"{self.pictures.name}, {reconstructor.name}: {reconstructor.rate_note}")

    def process(self, batch: list[OriginalPicture]) -> _Found:
        """What a batch shows; changes nothing, so any process can do it."""
        name = self.pictures.name
        made = {c.name: catch_errors(partial(_reconstruct, c, self._fit), batch) for c in self._left()}
        errors = {who: one for who, one in made.items() if isinstance(one, USER_ERRORS)}
        drawn = {who: one for who, one in made.items() if not isinstance(one, USER_ERRORS)}
        measured = [catch_errors(partial(meter.process, batch), drawn) for meter in self._meters]
        items = [
            item
            for meter, one in zip(self._meters, measured, strict=True)
            if not isinstance(one, USER_ERRORS)
            for item in meter.items(batch, one)
        ]
        longer, before = self._keeper.copy(), self._keeper.cases()
        longer.see(batch, drawn, items)
        return _Found(
            measured=measured,
            items=[{"data": name} | item for item in items],
            cases=[case for case in longer.cases() if case not in before],
            examples={
                shown.row: self._example(shown, {who: several[i] for who, several in drawn.items()}, items)
                for i, shown in enumerate(batch)
                if shown.row in self._rows
            },
            files=[
                (who, one.output.file, shown.sample.path)
                for who, several in drawn.items()
                for one, shown in zip(several, batch, strict=True)
                if one.output.file is not None
            ],
            failed=errors,
        )

    def add(self, found: _Found, groups: Sequence[int]) -> None:
        """What was found on the next batch."""
        for who, error in found.failed.items():
            self._drop(who, error)
        for index, one in enumerate(found.measured):
            if index not in self._broken and isinstance(one, USER_ERRORS):
                self._broken.add(index)
                self._failures.add(one, data=self.pictures.name, metric=self._meters[index].what)
            elif index not in self._broken:
                self._meters[index].add(one, groups)
        for case in found.cases:
            self._keeper.add(case)
        for who, file, path in found.files:
            if who not in self._failed and (error := catch_errors(partial(self._reconstructors[who].add, file), path)):
                self._drop(who, error)
        self._examples |= found.examples
        self._items += map(json.dumps, found.items)

    def part(self) -> SetResult:
        """Everything as numbers; of those that have failed nothing."""
        left, failed = self._left(), self._failed
        for reconstructor in left:
            if missing_caption := self._codes.missing_caption(reconstructor.name):
                of = f"{missing_caption} of {self.pictures.seen} pictures"
                say(f"{self.pictures.name}, {reconstructor.name}: hears captions, and {of} have none")
        meters = [meter for index, meter in enumerate(self._meters) if index not in self._broken]
        measured = {c.name: _measurements(meters, c.name, self._metrics) for c in left}
        for metric in self._metrics or ():
            if not any(metric in map(family, found) for found in measured.values()):
                say(f"{self.pictures.name}: nothing to measure {metric} on")
        results = [
            Result(
                tokenizer=c.name,
                data=self.pictures.name,
                is_check=c.is_check,
                is_codec=c.is_codec,
                metrics={metric: score_of(m, c.teachers) for metric, m in measured[c.name].items()},
            )
            for c in left
        ]
        taught = {(one.tokenizer, metric) for one in results for metric, score in one.metrics.items() if score.taught}
        return SetResult(
            data=self.pictures.counted(),
            results=results,
            comparisons=[
                replace(one, taught=not taught.isdisjoint({(c.name, one.metric), (other, one.metric)}))
                for c in left
                if not c.is_check and (other := c.compared_with or self._competitors[0]) in measured and other != c.name
                for one in _comparisons(self.pictures.name, c.name, other, measured)
            ],
            examples=[one.without(failed) for one in self._examples.values()],
            cases=[case for case in self._keeper.cases() if failed.isdisjoint(case.drawn)],
            items=[_without(failed, line) for line in self._items] if failed else self._items,
            sizes=self.pictures.sizes,
        )

    def _example(
        self, shown: OriginalPicture, drawn: Mapping[str, ReconstructedPicture], items: Sequence[dict[str, Any]]
    ) -> Example:
        """A picture with what everybody but the checks made of it."""
        restored = {who: one.restored for who, one in drawn.items() if who in self._competitors}
        pictures = {"original": shown.original, **restored}
        of_it = [item for item in items if item["row"] == shown.row]
        chosen = [item for kind in ("word", "face") for item in [i for i in of_it if i["kind"] == kind][:_PARTS]]
        return Example(
            data=self.pictures.name,
            path=shown.sample.path,
            pictures={who: downscale(picture, WIDEST) for who, picture in pictures.items()},
            texts={who: one.output.text for who, one in drawn.items() if one.output.text is not None},
            parts=[(item, {who: part_of(item, picture) for who, picture in pictures.items()}) for item in chosen],
        )

    def is_lost(self) -> bool:
        """Whether nobody but checks is left."""
        return self._failed.issuperset(self._competitors)

    def _left(self) -> list[Reconstructor]:
        return [c for c in self._reconstructors.values() if c.name not in self._failed]

    def _drop(self, who: str, error: InputError | OSError) -> None:
        """Leave a reconstructor out from here on.

        Raises:
            InputError: nobody but checks is left.
            OSError: likewise.
        """
        if who not in self._failed:
            self._failed.add(who)
            if self.is_lost():
                raise error
            self._failures.add(error, tokenizer=who, data=self.pictures.name)


def _without(failed: Collection[str], line: str) -> str:
    """A line of `items.jsonl` but for some reconstructors' outcomes."""
    item = json.loads(line)
    outcomes = {key: value for key, value in item.items() if key in ("psnr", "read", "similarity")}
    rest = {key: {who: one for who, one in of.items() if who not in failed} for key, of in outcomes.items()}
    return json.dumps(item | rest)


def _reconstruct(
    reconstructor: Reconstructor, fit: Preprocessing, batch: Sequence[OriginalPicture]
) -> list[ReconstructedPicture]:
    own = reconstructor.at_own_size
    entering = [one.original if own else one.prepared for one in batch]
    drawn = []
    for made, one in zip(reconstructor.reconstruct(entering, [one.sample for one in batch]), batch, strict=True):
        restored = made.picture if own else fit.restore(made.picture, one.original)
        square = fit.prepare(restored) if own else made.picture
        content = fit.content(square, one.original)
        drawn.append(ReconstructedPicture(output=replace(made, picture=square), content=content, restored=restored))
    return drawn


def _measurements(meters: Sequence[Meter[Any]], name: str, metrics: Sequence[str] | None) -> dict[str, Measurement]:
    """What the meters found, as far as it was asked for; of several codebooks each has its own (`codebook_usage_1`).

    A rate never comes without the caption's, where there is one.
    """
    found = {metric: measured for meter in meters for metric, measured in meter.results(name).items()}
    if metrics is None:
        return found
    wanted = {*metrics, *(_WITH_CAPTION if "bits_per_pixel" in metrics else ())}
    return {metric: measured for metric, measured in found.items() if family(metric) in wanted}


def _comparisons(
    data: str, tokenizer: str, baseline: str, measured: Mapping[str, Mapping[str, Measurement]]
) -> Iterator[Comparison]:
    """One tokenizer against another, metric by metric, where there are groups enough for an interval."""
    for metric, theirs in measured[baseline].items():
        ours = measured[tokenizer].get(metric)
        if ours is None or ours.items is None or theirs.items is None or metric in _RATES:
            continue
        finite = np.isfinite(ours.items.values) & np.isfinite(theirs.items.values)
        if not finite.any():
            continue
        mine = ours.items.where(finite)
        found = paired_difference(mine, theirs.items.where(finite))
        if np.isnan(found.low):
            continue
        yield Comparison(
            tokenizer=tokenizer,
            baseline=baseline,
            data=data,
            metric=metric,
            difference=found.value,
            low=found.low,
            high=found.high,
            count=mine.number_of_items(),
        )
