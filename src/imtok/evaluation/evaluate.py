"""Any tokenizers on any pictures: numbers with intervals, differences between tokenizers, and a report to look at."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from imtok import pretrained
from imtok.checkpoints import write_text
from imtok.config import ConfigError
from imtok.data.pictures import Picture
from imtok.data.sample import Source
from imtok.evaluation.buckets import FaceBuckets
from imtok.evaluation.cache import Cache, default_file
from imtok.evaluation.cases import Case, CaseKeeper
from imtok.evaluation.contestants import (
    Contestant,
    File,
    TokenizerContestant,
    WrongCaptions,
    open_contestant,
    self_checks,
)
from imtok.evaluation.faces import FaceJudge, FaceMeter
from imtok.evaluation.fit import OwnSize, SquareFit
from imtok.evaluation.meters import (
    CodeMeter,
    Drawn,
    FrechetMeter,
    InceptionMeter,
    Measurement,
    Meter,
    PerceptualMeter,
    PixelMeter,
    Shown,
)
from imtok.evaluation.ranks import look_in_turn, progress_bar, say
from imtok.evaluation.repeat import command_line, versions
from imtok.evaluation.report import write_report
from imtok.evaluation.results import Comparison, DataSet, Evaluation, Example, Result, score_of
from imtok.evaluation.sets import MIN_SIDE, Count, Pictures, open_sets
from imtok.evaluation.statistics import paired_difference
from imtok.evaluation.text import TextJudge, TextMeter
from imtok.layers.collective import best_device, process_group, rank

METRICS = (
    "psnr",
    "ssim",
    "vgg16_distance",
    "fd_efficientnet_lite0",
    "fid",
    "inception_score",
    "bits_per_pixel",
    "bits_per_pixel_with_caption",
    "caption_bits",
    "codebook_usage",
    "codebook_perplexity",
    "shared_information",
    "text_accuracy",
    "text_ned",
    "text_accuracy_alnum",
    "face_similarity",
)
TEXT_JUDGE, FACE_JUDGE = "text_judge/easyocr", "face_judge/dlib"
_WITH_CAPTION = ("bits_per_pixel_with_caption", "caption_bits")
_RATES = ("bits_per_pixel", *_WITH_CAPTION)
_PROTOCOLS = {"text": TextJudge, "face": FaceJudge}
_ON_DEVICE = ("perceptual", "frechet", "inception")
"""Networks that look at whole pictures; the judges of words and faces read on the CPU."""
_EXAMPLES = 12
"""Pictures of each set that the report shows: evenly spread over the set, none chosen."""


def evaluate(
    tokenizers: str | PathLike[str] | Sequence[str | PathLike[str]],
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, Source],
    out: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    size: int | None = None,
    count: int | None = None,
    checks: bool = True,
    wrong_captions: bool = False,
    text_judge: str = TEXT_JUDGE,
    face_judge: str = FACE_JUDGE,
    face_buckets: FaceBuckets = "second",
    cache: bool = True,
) -> Evaluation:
    """Measure tokenizers on sets of pictures.

    Processes that torchrun has started share the work; each returns all of it, and the first one writes the files.

    Args:
        tokenizers: shipped names, run folders, other projects' checkpoints, folders of reconstructed pictures
            (`FOLDER@BITS_PER_PIXEL` where their rate is known), or codecs (`jpeg:QUALITY`, `webp@BITS_PER_PIXEL`). The
            others are compared with the first.
        data: anything that `open_source` reads, or sources by name. For the metrics that look at them, words need their
            text and faces their landmarks, as `imtok annotate` writes them.
        out: folder for `metrics.json`, `report.html` and `items.jsonl`; None writes nothing.
        metrics: names out of `METRICS`; None: all that the pictures and the networks at hand allow.
        size: judge at so many pixels by TokBench's preparation (`SquareFit`); None: every picture at its own size.
        count: at most so many pictures of each set, evenly spread.
        checks: also measure the model-free self-checks.
        wrong_captions: also measure every tokenizer that hears of captions while it is told another picture's.
        text_judge: reads the words.
        face_judge: compares the faces.
        face_buckets: which version of TokBench's sizes of faces.
        cache: keep on disk what the judges say of originals, and look there first (see `imtok.evaluation.cache`).

    Raises:
        ConfigError: an unknown metric, tokenizer or judge, two tokenizers of one name, a set without a readable
            picture, or a tokenizer that cannot reconstruct one.
        DataError: a set that cannot be opened.
        MissingWeights: a network that a metric asked for by name needs.
    """
    sources = [tokenizers] if isinstance(tokenizers, str | PathLike) else list(tokenizers)
    places = [data] if isinstance(data, str | PathLike) else data
    sets = open_sets(places)
    if unknown := [name for name in metrics or () if name not in METRICS]:
        raise ConfigError(f"no metric is called {unknown[0]!r}; there are {', '.join(METRICS)}")
    if not sources or not sets:
        raise ConfigError("name at least one tokenizer and one set of pictures")
    if (size is not None and size < MIN_SIDE) or (count is not None and count < 1):
        raise ConfigError(f"size must be {MIN_SIDE} or more, and count at least 1")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    told = () if isinstance(places, Mapping) else places
    contestants: list[Contestant] = [open_contestant(str(source), told) for source in sources]
    if wrong_captions:
        contestants += [WrongCaptions(c) for c in contestants if isinstance(c, TokenizerContestant) and c.reader]
    if checks:
        contestants += self_checks()
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tokenizers are called {max(names, key=names.count)}; rename a folder")
    networks = load_networks(metrics, text_judge, face_judge)
    with process_group(), Cache(default_file() if cache else None) as answers:
        parts = [
            _evaluate_set(name, source, contestants, metrics, _meters(networks, face_buckets, answers), size, count)
            for name, source in sets.items()
        ]
        writes = out is not None and rank() == 0
    options = {
        "metrics": metrics,
        "size": size,
        "count": count,
        "checks": None if checks else False,
        "wrong_captions": wrong_captions or None,
        "text_judge": None if text_judge == TEXT_JUDGE else text_judge,
        "face_judge": None if face_judge == FACE_JUDGE else face_judge,
        "face_buckets": None if face_buckets == "second" else face_buckets,
    }
    evaluation = Evaluation(
        tokenizers={c.name: _about(c) for c in contestants},
        sets=[part.data for part in parts],
        results=[result for part in parts for result in part.results],
        comparisons=[comparison for part in parts for comparison in part.comparisons],
        preprocessing=OwnSize.rule if size is None else f"{SquareFit.rule}, {size} px",
        examples=[example for part in parts for example in part.examples],
        repeat={
            "command": command_line(
                [str(source) for source in sources],
                list(sets) if isinstance(places, Mapping) else [str(place) for place in places],
                {name: value for name, value in options.items() if value is not None},
            ),
            "versions": versions(),
        },
        cases=[case for part in parts for case in part.cases],
    )
    if out is not None and writes:
        write_text(Path(out) / "metrics.json", json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")
        write_text(Path(out) / "items.jsonl", "".join(json.dumps(item) + "\n" for part in parts for item in part.items))
        write_report(evaluation, Path(out) / "report.html")
    return evaluation


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one set contributes."""

    data: DataSet
    results: list[Result]
    comparisons: list[Comparison]
    examples: list[Example]
    cases: list[Case]
    items: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What one process finds in a portion of a set; it travels to the others."""

    count: Count
    batches: list[tuple[int, list[Any]]]
    """How many pictures, and what each meter found on them."""
    items: list[dict[str, Any]]
    cases: list[Case]
    examples: dict[int, tuple[str, Picture, dict[str, Picture]]]
    """By row: path, original and reconstructions."""
    files: list[tuple[str, File, str]]
    """By whom each was read, and for which original."""


def _evaluate_set(
    name: str,
    source: Source,
    contestants: Sequence[Contestant],
    metrics: Sequence[str] | None,
    of_networks: Sequence[Meter[Any]],
    size: int | None,
    count: int | None,
) -> _Part:
    fit = OwnSize() if size is None else SquareFit(size)
    pictures = Pictures(name, source, fit, count)
    for contestant in contestants:
        contestant.begin(pictures)
        if contestant.rate_note:
            say(f"{name}, {contestant.name}: {contestant.rate_note}")
    codes = CodeMeter({c.name: c.codebook_sizes for c in contestants}, {c.name: c.rate_note for c in contestants})
    meters = [PixelMeter(), codes, *of_networks]
    competing = [c.name for c in contestants if not c.is_check]
    wanted = pictures.evenly_spread(_EXAMPLES)

    def look(rows: Sequence[int]) -> _Found:
        keeper = CaseKeeper(name, competing)
        found = _Found(count=Count(), batches=[], items=[], cases=[], examples={}, files=[])
        for batch in pictures.batches(rows, found.count):
            drawn = {c.name: _reconstruct(c, batch, fit) for c in contestants}
            measured = [meter.look(batch, drawn) for meter in meters]
            items = [item for meter, one in zip(meters, measured, strict=True) for item in meter.items(batch, one)]
            keeper.see(batch, drawn, items)
            found.batches.append((len(batch), measured))
            found.items.extend({"data": name} | item for item in items)
            for index, shown in enumerate(batch):
                if shown.row in wanted:
                    restored = {who: several[index].restored for who, several in drawn.items()}
                    found.examples[shown.row] = shown.sample.path, shown.original, restored
                for who, several in drawn.items():
                    if (file := several[index].made.file) is not None:
                        found.files.append((who, file, shown.sample.path))
        found.cases.extend(keeper.cases())
        return found

    keeper, examples, items = CaseKeeper(name, competing), {}, []
    by_name = {c.name: c for c in contestants}
    portions = pictures.portions()
    with progress_bar(pictures.total, name, " pictures") as bar:
        for rows, found in zip(portions, look_in_turn(portions, look), strict=True):
            groups = iter(pictures.add(found.count))
            for number, measured in found.batches:
                of_batch = list(islice(groups, number))
                for meter, one in zip(meters, measured, strict=True):
                    meter.add(one, of_batch)
            for case in found.cases:
                keeper.add(case)
            for who, file, path in found.files:
                by_name[who].add(file, path)
            examples |= found.examples
            items += found.items
            bar.update(len(rows))
    pictures.check()
    measured = {c.name: _measurements(meters, c.name, metrics) for c in contestants}
    for metric in metrics or ():
        if not any(metric in found for found in measured.values()):
            say(f"{name}: nothing to measure {metric} on")
    return _Part(
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


def _about(contestant: Contestant) -> dict[str, Any]:
    about: dict[str, Any] = {"teachers": sorted(contestant.teachers), "is_check": contestant.is_check}
    return about if contestant.sha256 is None else about | {"sha256": contestant.sha256}


def _reconstruct(contestant: Contestant, batch: Sequence[Shown], fit: OwnSize | SquareFit) -> list[Drawn]:
    own = contestant.at_own_size
    entering = [one.original if own else one.prepared for one in batch]
    drawn = []
    for made, one in zip(contestant.reconstruct(entering, [one.sample for one in batch]), batch, strict=True):
        restored = made.picture if own else fit.restore(made.picture, one.original)
        square = fit.prepare(restored) if own else made.picture
        content = fit.content(square, one.original)
        drawn.append(Drawn(made=replace(made, picture=square), content=content, restored=restored))
    return drawn


def load_networks(
    metrics: Sequence[str] | None, text_judge: str = TEXT_JUDGE, face_judge: str = FACE_JUDGE
) -> dict[str, Any]:
    """The networks of some metrics, by what they are for; a missing one is an error only when a metric was named.

    Raises:
        ConfigError: a judge that cannot judge.
        MissingWeights: a network that a metric asked for by name needs.
    """
    needed = {
        "perceptual": ("perceptual/vgg16", {"vgg16_distance"}),
        "frechet": ("vision/efficientnet_lite0", {"fd_efficientnet_lite0"}),
        "inception": ("vision/inception", {"fid", "inception_score"}),
        "text": (text_judge, {"text_accuracy", "text_ned", "text_accuracy_alnum"}),
        "face": (face_judge, {"face_similarity"}),
    }
    networks = {}
    for use, (network, served) in needed.items():
        if metrics is not None and not served & set(metrics):
            continue
        try:
            networks[use] = pretrained.load(network)
            if use in _ON_DEVICE:
                networks[use].to(best_device())
            if not isinstance(networks[use], _PROTOCOLS.get(use, object)):
                raise ConfigError(f"{network}: cannot judge {use}s; see imtok weights for the {use} judges")
        except pretrained.MissingWeights as error:
            if metrics is not None:
                raise
            if use == "inception":
                continue  # few have it, and its stand-in is measured
            say(f"without {', '.join(sorted(served))}: {error}")
    return networks


def _meters(networks: Mapping[str, Any], face_buckets: FaceBuckets, answers: Cache) -> list[Meter[Any]]:
    makers: dict[str, Callable[[Any], Meter[Any]]] = {
        "perceptual": PerceptualMeter,
        "frechet": FrechetMeter,
        "inception": InceptionMeter,
        "text": lambda judge: TextMeter(judge, answers),
        "face": lambda judge: FaceMeter(judge, face_buckets, answers),
    }
    return [makers[use](network) for use, network in networks.items()]


def _measurements(meters: Sequence[Meter[Any]], name: str, metrics: Sequence[str] | None) -> dict[str, Measurement]:
    """What the meters found, as far as it was asked for; of several codebooks each has its own (`codebook_usage_1`).

    A rate never comes without the caption's, where there is one.
    """
    wanted = METRICS if metrics is None else {*metrics, *(_WITH_CAPTION if "bits_per_pixel" in metrics else ())}
    found = [found for meter in meters for found in meter.results(name).items()]
    return {
        metric: measurement
        for metric, measurement in found
        if metric.rstrip("_0123456789") in wanted or metric in wanted
    }


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
