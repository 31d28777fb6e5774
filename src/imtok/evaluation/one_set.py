"""One set of pictures through every contestant: who looks at what, and how what is found becomes numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imtok.data.pictures import Picture
from imtok.data.sample import Source
from imtok.evaluation.cases import Case, CaseKeeper
from imtok.evaluation.contestants import Contestant, File
from imtok.evaluation.fit import OwnSize
from imtok.evaluation.meters import CodeMeter, Drawn, Measurement, Meter, PixelMeter, Shown
from imtok.evaluation.ranks import Ranks, say
from imtok.evaluation.results import Comparison, DataSet, Example, Result, score_of
from imtok.evaluation.sets import Pictures
from imtok.evaluation.statistics import paired_difference

_WITH_CAPTION = ("bits_per_pixel_with_caption", "caption_bits")
_RATES = ("bits_per_pixel", *_WITH_CAPTION)
_EXAMPLES = 12
"""Pictures of each set that the report shows: evenly spread over the set, none chosen."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one set contributes."""

    data: DataSet
    results: list[Result]
    comparisons: list[Comparison]
    examples: list[Example]
    cases: list[Case]
    items: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What one process finds on a batch; it travels to the others, so it holds few pixels."""

    measured: list[Any]
    """By each meter."""
    items: list[dict[str, Any]]
    cases: list[Case]
    """That go beyond those found before."""
    examples: dict[int, tuple[str, Picture, dict[str, Picture]]]
    """By row: path, original and reconstructions."""
    files: list[tuple[str, File, str]]
    """By whom each was read, and for which original."""


def evaluate_set(
    name: str,
    source: Source,
    contestants: Sequence[Contestant],
    metrics: Sequence[str] | None,
    of_networks: Callable[[int], list[Meter[Any]]],
    fit: OwnSize,
    count: int | None,
    ranks: Ranks,
) -> Part:
    """Measure every contestant on a set.

    Args:
        name: of the set.
        source: of its pictures.
        contestants: all but the checks are compared with the first.
        metrics: which to keep; None: all.
        of_networks: makes the meters beside those of pixels and codes, for so many pictures.
        fit: how pictures enter.
        count: at most so many pictures, evenly spread.
        ranks: who share the work.

    Raises:
        ConfigError: a set without a readable picture, or a contestant that cannot reconstruct one.
    """
    pictures = Pictures(name, source, fit, count)
    for contestant in contestants:
        contestant.begin(pictures)
        if contestant.rate_note:
            say(f"{name}, {contestant.name}: {contestant.rate_note}")
    codes = CodeMeter({c.name: c.codebook_sizes for c in contestants}, {c.name: c.rate_note for c in contestants})
    meters = [PixelMeter(), codes, *of_networks(pictures.total)]
    keeper = CaseKeeper(name, [c.name for c in contestants if not c.is_check])
    wanted, examples, items = pictures.evenly_spread(_EXAMPLES), {}, []

    def look(batch: list[Shown]) -> _Found:
        drawn = {c.name: _reconstruct(c, batch, fit) for c in contestants}
        measured = [meter.look(batch, drawn) for meter in meters]
        items = [item for meter, one in zip(meters, measured, strict=True) for item in meter.items(batch, one)]
        longer, before = keeper.copy(), keeper.cases()
        longer.see(batch, drawn, items)
        return _Found(
            measured=measured,
            items=[{"data": name} | item for item in items],
            cases=[case for case in longer.cases() if case not in before],
            examples={
                shown.row: (shown.sample.path, shown.original, {who: d[i].restored for who, d in drawn.items()})
                for i, shown in enumerate(batch)
                if shown.row in wanted
            },
            files=[
                (who, one.made.file, shown.sample.path)
                for who, several in drawn.items()
                for one, shown in zip(several, batch, strict=True)
                if one.made.file is not None
            ],
        )

    by_name = {c.name: c for c in contestants}
    for groups, found in pictures.in_turn(look, ranks):
        for meter, one in zip(meters, found.measured, strict=True):
            meter.add(one, groups)
        for case in found.cases:
            keeper.add(case)
        for who, file, path in found.files:
            by_name[who].add(file, path)
        examples |= found.examples
        items += found.items
    measured = {c.name: _measurements(meters, c.name, metrics) for c in contestants}
    for metric in metrics or ():
        if not any(metric in found for found in measured.values()):
            say(f"{name}: nothing to measure {metric} on")
    return Part(
        data=DataSet(
            name=name,
            pictures=pictures.seen,
            groups=pictures.groups,
            sha256=pictures.sha256(),
            paths_sha256=pictures.paths_sha256(),
            unreadable=pictures.unreadable,
        ),
        results=[
            Result(
                tokenizer=c.name,
                data=name,
                is_check=c.is_check,
                metrics={metric: score_of(m, c.teachers) for metric, m in measured[c.name].items()},
            )
            for c in contestants
        ],
        comparisons=list(_comparisons(name, [c for c in contestants if not c.is_check], measured)),
        examples=[
            Example(
                data=name,
                path=path,
                original=original,
                drawn=drawn,
                words=[item for item in items if item["row"] == row and item["kind"] == "word"],
                faces=[item for item in items if item["row"] == row and item["kind"] == "face"],
            )
            for row, (path, original, drawn) in examples.items()
        ],
        cases=keeper.cases(),
        items=items,
    )


def _reconstruct(contestant: Contestant, batch: Sequence[Shown], fit: OwnSize) -> list[Drawn]:
    own = contestant.at_own_size
    entering = [one.original if own else one.prepared for one in batch]
    drawn = []
    for made, one in zip(contestant.reconstruct(entering, [one.sample for one in batch]), batch, strict=True):
        restored = made.picture if own else fit.restore(made.picture, one.original)
        square = fit.prepare(restored) if own else made.picture
        content = fit.content(square, one.original)
        drawn.append(Drawn(made=replace(made, picture=square), content=content, restored=restored))
    return drawn


def _measurements(meters: Sequence[Meter[Any]], name: str, metrics: Sequence[str] | None) -> dict[str, Measurement]:
    """What the meters found, as far as it was asked for; of several codebooks each has its own (`codebook_usage_1`).

    A rate never comes without the caption's, where there is one.
    """
    found = {metric: measured for meter in meters for metric, measured in meter.results(name).items()}
    if metrics is None:
        return found
    wanted = {*metrics, *(_WITH_CAPTION if "bits_per_pixel" in metrics else ())}
    return {metric: measured for metric, measured in found.items() if {metric, metric.rstrip("_0123456789")} & wanted}


def _comparisons(
    data: str, contestants: Sequence[Contestant], measured: Mapping[str, Mapping[str, Measurement]]
) -> Iterator[Comparison]:
    """Every tokenizer against the first, metric by metric, where there are groups enough for an interval."""
    for other in contestants[1:]:
        for metric, baseline in measured[contestants[0].name].items():
            ours = measured[other.name].get(metric)
            if ours is None or ours.items is None or baseline.items is None or metric in _RATES:
                continue
            finite = np.isfinite(ours.items.values) & np.isfinite(baseline.items.values)
            if not finite.any():
                continue
            found = paired_difference(ours.items.where(finite), baseline.items.where(finite))
            if np.isnan(found.low):
                continue
            yield Comparison(
                tokenizer=other.name,
                baseline=contestants[0].name,
                data=data,
                metric=metric,
                difference=found.value,
                low=found.low,
                high=found.high,
                count=int(finite.sum()),
            )
