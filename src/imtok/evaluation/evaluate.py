"""Any tokenizers on any pictures: numbers with intervals, differences between tokenizers, and a report to look at."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from imtok import pretrained
from imtok.checkpoints import write_text
from imtok.config import ConfigError
from imtok.data.pictures import PictureError, decode
from imtok.data.readers import open_source
from imtok.data.sample import Source
from imtok.evaluation.contestants import Contestant, open_contestant, self_checks
from imtok.evaluation.fit import OwnSize, SquareFit
from imtok.evaluation.meters import (
    CodeMeter,
    Drawn,
    FaceMeter,
    FrechetMeter,
    Measurement,
    Meter,
    PerceptualMeter,
    PixelMeter,
    Shown,
    TextMeter,
)
from imtok.evaluation.report import write_report
from imtok.evaluation.results import Comparison, DataSet, Evaluation, Example, Result, Score
from imtok.evaluation.statistics import interval, paired_difference

METRICS = (
    "psnr",
    "ssim",
    "vgg16_distance",
    "fd_efficientnet_lite0",
    "bits_per_pixel",
    "codebook_usage",
    "codebook_perplexity",
    "text_accuracy",
    "text_ned",
    "text_accuracy_alnum",
    "face_similarity",
)
TEXT_JUDGE, FACE_JUDGE = "text_judge/easyocr", "face_judge/dlib"
_METERS = {"perceptual": PerceptualMeter, "frechet": FrechetMeter, "text": TextMeter, "face": FaceMeter}
_BATCH, _BATCH_PIXELS = 16, 2**20
"""At most so many pictures and pixels are held together."""
_EXAMPLES = 12
"""Pictures of each set that the report shows: evenly spread over the set, none chosen."""


def evaluate(
    tokenizers: str | Sequence[str],
    data: str | Sequence[str] | Mapping[str, Source],
    out: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    size: int | None = None,
    count: int | None = None,
    checks: bool = True,
    text_judge: str = TEXT_JUDGE,
    face_judge: str = FACE_JUDGE,
) -> Evaluation:
    """Measure tokenizers on sets of pictures.

    Args:
        tokenizers: shipped names, run folders, other projects' checkpoints, or folders of reconstructed pictures. The
            others are compared with the first.
        data: anything that `open_source` reads, or sources by name. For the metrics that look at them, words need their
            text and faces their landmarks, as `imtok annotate` writes them.
        out: folder for `metrics.json`, `report.html` and `items.jsonl`; None writes nothing.
        metrics: names out of `METRICS`; None: all that the pictures and the networks at hand allow.
        size: judge at so many pixels by TokBench's preparation (`SquareFit`); None: every picture at its own size.
        count: at most so many pictures of each set, evenly spread.
        checks: also measure the model-free self-checks.
        text_judge: reads the words.
        face_judge: compares the faces.

    Raises:
        ConfigError: an unknown metric or tokenizer, two of one name, or a set without a readable picture.
        MissingWeights: a network that a metric asked for by name needs.
    """
    sources = [tokenizers] if isinstance(tokenizers, str) else list(tokenizers)
    sets = _open_sets([data] if isinstance(data, str) else data)
    if unknown := [name for name in metrics or () if name not in METRICS]:
        raise ConfigError(f"no metric is called {unknown[0]!r}; there are {', '.join(METRICS)}")
    if not sources or not sets:
        raise ConfigError("name at least one tokenizer and one set of pictures")
    contestants: list[Contestant] = [open_contestant(source) for source in sources]
    if checks:
        contestants += self_checks()
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tokenizers are called {max(names, key=names.count)}; rename a folder")
    networks = _load_networks(metrics, text_judge, face_judge)
    parts = [_evaluate_set(name, source, contestants, metrics, networks, size, count) for name, source in sets.items()]
    evaluation = Evaluation(
        tokenizers={c.name: {"teachers": sorted(c.teachers), "is_check": c.is_check} for c in contestants},
        sets=[part.data for part in parts],
        results=[result for part in parts for result in part.results],
        comparisons=[comparison for part in parts for comparison in part.comparisons],
        preprocessing=OwnSize.rule if size is None else f"{SquareFit.rule}, {size} px",
        examples=[example for part in parts for example in part.examples],
    )
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
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
    items: list[dict[str, Any]]


def _evaluate_set(
    name: str,
    source: Source,
    contestants: Sequence[Contestant],
    metrics: Sequence[str] | None,
    networks: Mapping[str, Any],
    size: int | None,
    count: int | None,
) -> _Part:
    fit = OwnSize() if size is None else SquareFit(size)
    meters: list[Meter] = [PixelMeter(), CodeMeter({c.name: c.codebook_sizes for c in contestants})]
    meters += [_METERS[use](network) for use, network in networks.items()]
    pictures = _Pictures(source, fit, count)
    wanted, examples = pictures.evenly_spread(_EXAMPLES), {}
    with tqdm(total=pictures.total, desc=name, unit=" pictures", disable=None) as bar:
        for batch in pictures.batches():
            for meter in meters:
                meter.see(batch)
            for contestant in contestants:
                drawn = _reconstruct(contestant, batch, fit)
                for meter in meters:
                    meter.compare(contestant.name, drawn)
                for shown, one in zip(batch, drawn, strict=True):
                    if shown.sample.path in wanted:
                        kept = examples.setdefault(shown.sample.path, (shown.original, {}))
                        kept[1][contestant.name] = one.restored
            bar.update(len(batch))
    measured = {c.name: _measurements(meters, c.name, metrics) for c in contestants}
    items = [{"data": name} | item for meter in meters for item in meter.items()]
    return _Part(
        data=DataSet(
            name=name,
            pictures=pictures.seen,
            groups=pictures.groups,
            sha256=pictures.sha256(),
            unreadable=pictures.unreadable,
        ),
        results=[
            Result(
                tokenizer=c.name,
                data=name,
                is_check=c.is_check,
                metrics={metric: _score(m, c) for metric, m in measured[c.name].items()},
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
                words=[item for item in items if item["path"] == path and item["kind"] == "word"],
                faces=[item for item in items if item["path"] == path and item["kind"] == "face"],
            )
            for path, (original, drawn) in examples.items()
        ],
        items=items,
    )


class _Pictures:
    """The readable pictures of a set in batches of one size, with their resampling groups."""

    def __init__(self, source: Source, fit: OwnSize | SquareFit, count: int | None) -> None:
        total = len(source) if count is None else min(count, len(source))
        self._rows = [index * len(source) // total for index in range(total)]
        self._source, self._fit = source, fit
        self._groups: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self.total, self.seen, self.unreadable = total, 0, 0

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self._groups)

    def sha256(self) -> str:
        """Of the encoded pictures that were seen, in their order."""
        return self._hash.hexdigest()

    def evenly_spread(self, number: int) -> set[str]:
        """Paths of some pictures."""
        rows = self._rows[:: max(1, len(self._rows) // number)][:number]
        paths = set()
        for row in rows:
            try:
                paths.add(self._source[row].path)
            except PictureError:
                continue
        return paths

    def batches(self) -> Iterator[list[Shown]]:
        """Consecutive pictures of one prepared size.

        Raises:
            ConfigError: not one picture could be read.
        """
        batch: list[Shown] = []
        most = _BATCH
        for row in self._rows:
            try:
                sample = self._source[row]
                original = decode(sample.image, sample.path)
            except PictureError as error:
                tqdm.write(f"left out: {error}")
                self.unreadable += 1
                continue
            self._hash.update(sample.image)
            self.seen += 1
            group = self._groups.setdefault(sample.cluster or sample.path, len(self._groups))
            shown = Shown(sample=sample, group=group, original=original, prepared=self._fit.prepare(original))
            if batch and (len(batch) == most or batch[0].prepared.shape != shown.prepared.shape):
                yield batch
                batch = []
            batch.append(shown)
            most = max(1, min(_BATCH, _BATCH_PIXELS // shown.prepared[..., 0].size))
        if not self.seen:
            raise ConfigError("none of the pictures can be read")
        yield batch


def _reconstruct(contestant: Contestant, batch: Sequence[Shown], fit: OwnSize | SquareFit) -> list[Drawn]:
    made = contestant.reconstruct([one.prepared for one in batch], [one.sample.path for one in batch])
    return [
        Drawn(prepared=reconstruction, restored=fit.restore(reconstruction.picture, one.original))
        for reconstruction, one in zip(made, batch, strict=True)
    ]


def _load_networks(metrics: Sequence[str] | None, text_judge: str, face_judge: str) -> dict[str, Any]:
    """By what they are for; a missing one is an error only when a metric was asked for by name."""
    needed = {
        "perceptual": ("perceptual/vgg16", {"vgg16_distance"}),
        "frechet": ("vision/efficientnet_lite0", {"fd_efficientnet_lite0"}),
        "text": (text_judge, {"text_accuracy", "text_ned", "text_accuracy_alnum"}),
        "face": (face_judge, {"face_similarity"}),
    }
    networks = {}
    for use, (network, served) in needed.items():
        if metrics is not None and not served & set(metrics):
            continue
        try:
            networks[use] = pretrained.load(network)
        except pretrained.MissingWeights as error:
            if metrics is not None:
                raise
            tqdm.write(f"without {', '.join(sorted(served))}: {error}")
    return networks


def _measurements(meters: Sequence[Meter], name: str, metrics: Sequence[str] | None) -> dict[str, Measurement]:
    """What the meters found, as far as it was asked for; of several codebooks each has its own (`codebook_usage_1`)."""
    wanted = METRICS if metrics is None else metrics
    found = [found for meter in meters for found in meter.results(name).items()]
    return {
        metric: measurement
        for metric, measurement in found
        if metric.rstrip("_0123456789") in wanted or metric in wanted
    }


def _score(measurement: Measurement, contestant: Contestant) -> Score:
    taught = measurement.network in contestant.teachers
    about = {"network": measurement.network, "sha256": measurement.sha256, "taught": taught, "note": measurement.note}
    items = measurement.items
    if items is None:
        return Score(value=measurement.value, parts=measurement.parts or None, **about)
    buckets = None
    if len(items.bucket_names) > 1:
        columns = zip(items.bucket_names, items.bucket_means(), items.bucket_sizes().tolist(), strict=True)
        buckets = {bucket: {"value": mean, "count": size} for bucket, mean, size in columns}
    found = interval(items)
    return Score(
        value=_finite(found.value),
        low=_finite(found.low),
        high=_finite(found.high),
        count=len(items),
        buckets=buckets,
        **about,
    )


def _comparisons(
    data: str, contestants: Sequence[Contestant], measured: Mapping[str, Mapping[str, Measurement]]
) -> Iterator[Comparison]:
    """Every tokenizer against the first, metric by metric."""
    for other in contestants[1:]:
        for metric, baseline in measured[contestants[0].name].items():
            ours = measured[other.name].get(metric)
            if ours is None or ours.items is None or baseline.items is None or metric == "bits_per_pixel":
                continue
            if not np.isfinite([ours.items.values, baseline.items.values]).all():
                continue
            found = paired_difference(ours.items, baseline.items)
            yield Comparison(
                tokenizer=other.name,
                baseline=contestants[0].name,
                data=data,
                metric=metric,
                difference=found.value,
                low=found.low,
                high=found.high,
                count=len(ours.items),
            )


def _open_sets(data: Sequence[str] | Mapping[str, Source]) -> Mapping[str, Source]:
    """Each set by the last part of its place, or by all of it where that is not unique."""
    if isinstance(data, Mapping):
        return data
    short = [Path(place).name or place for place in data]
    names = [name if short.count(name) == 1 else place for name, place in zip(short, data, strict=True)]
    return {name: open_source(place) for name, place in zip(names, data, strict=True)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
