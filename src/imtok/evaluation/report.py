"""Self-contained HTML report: scores, differences, and the pictures behind them."""

import base64
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from imtok.checkpoints import write_text
from imtok.data.pictures import Picture, encode
from imtok.evaluation import charts
from imtok.evaluation.best_worst import WIDEST
from imtok.evaluation.charts import draw_charts, without_rate
from imtok.evaluation.results import Evaluation, Result, Score, metric_info_of, show_interval, show_number
from imtok.evaluation.statistics import CONFIDENCE, MIN_ITEMS, RESAMPLES
from imtok.evaluation.teachers import UNKNOWN
from imtok.evaluation.text import letters

_MAX_ASPECT_RATIO = 16
"""Maximum aspect ratio of a crop in the report; wider crops are squeezed horizontally."""
_SIZES: dict[str, dict[str, int]] = {"word": {"height": 56}, "face": {"height": 112}, "picture": {"widest": 192}}
_UNITS = {"word": "edit similarity", "face": "cosine", "picture": "dB PSNR"}


def write_report(evaluation: Evaluation, file: Path) -> None:
    """Write the HTML page; it loads no other file and nothing from the network."""
    environment = Environment(
        loader=PackageLoader("imtok.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": show_number, "interval": show_interval}
    page = environment.get_template("report.html.jinja").render(
        version=version("imtok"),
        confidence=f"{CONFIDENCE:.0%}",
        min_items=MIN_ITEMS,
        evaluation=evaluation,
        metric_info=metric_info_of(evaluation.results),
        differences=[_differences(evaluation, data.name) for data in evaluation.sets],
        tables=[_table(evaluation, data.name) for data in evaluation.sets],
        gallery=[(data.name, list(_gallery(evaluation, data.name))) for data in evaluation.sets],
        charts=[
            (data.name, draw_charts(evaluation, data.name), without_rate(evaluation, data.name))
            for data in evaluation.sets
        ],
        frame=charts,
        unknown=[name for name, about in evaluation.tokenizers.items() if UNKNOWN in about["teachers"]],
        extremes=_extremes(evaluation),
        networks=_networks(evaluation.results),
        notes=_notes(evaluation),
        resamples=RESAMPLES,
    )
    write_text(file, page)


def _differences(evaluation: Evaluation, data: str) -> dict[str, Any]:
    """Return the comparisons of a set: a row for each metric, a column for each pair."""
    found = {
        (comparison.metric, comparison.tokenizer, comparison.baseline): comparison
        for comparison in evaluation.comparisons
        if comparison.data == data
    }
    pairs = list(dict.fromkeys((tokenizer, baseline) for _, tokenizer, baseline in found))
    rows = [
        (metric, [found.get((metric, *pair)) for pair in pairs])
        for metric in dict.fromkeys(metric for metric, _, _ in found)
    ]
    return {"data": data, "pairs": pairs, "rows": rows}


def _table(evaluation: Evaluation, data: str) -> dict[str, Any]:
    """Return the scores of a set: a row for each metric, a column for each tokenizer."""
    results = [result for result in evaluation.results if result.data == data]
    metrics = list(dict.fromkeys(metric for result in results for metric in result.metrics))
    rows = [(metric, [result.metrics.get(metric) for result in results]) for metric in metrics]
    buckets = [
        (metric, bucket, [score.buckets[bucket] if score and score.buckets else None for score in scores])
        for metric, scores in rows
        for bucket in _buckets(scores)
    ]
    return {"data": data, "results": results, "rows": rows, "buckets": buckets}


def _buckets(scores: list[Score | None]) -> list[str]:
    return next((list(score.buckets) for score in scores if score is not None and score.buckets), [])


def _gallery(evaluation: Evaluation, data: str) -> Iterator[dict[str, Any]]:
    """Yield the examples of a set: pictures, then words and faces enlarged."""
    for example in evaluation.examples:
        if example.data == data:
            yield {
                "path": example.path,
                "pictures": [
                    (name, _embed(picture), example.texts.get(name)) for name, picture in example.pictures.items()
                ],
                "crops": [_figures(item, parts) for item, parts in example.parts],
            }


def _extremes(evaluation: Evaluation) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return the best and worst cases, by set and reconstructor."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in evaluation.cases:
        value = f"{case.value:.2f}" if case.baseline is None else f"{case.value:+.2f}"
        found.setdefault((case.data, case.tokenizer), []).append(
            {
                "value": f"{value} {_UNITS[case.item['kind']]}",
                "better": case.better,
                "path": case.item["path"],
                "figures": _figures(case.item, {"original": case.original, **case.reconstructions}),
            }
        )
    return [(data, tokenizer, cases) for (data, tokenizer), cases in found.items()]


def _figures(item: Mapping[str, Any], crops: Mapping[str, Picture]) -> list[dict[str, Any]]:
    """Return a word, face or picture before and after reconstruction: the crops and their captions."""
    kind = item["kind"]
    if kind == "word":
        outcomes = {"original": item["original"], **item["read"]}
        texts = {name: outcomes[name] or "nothing" for name in crops}
    else:
        outcomes = item["similarity" if kind == "face" else "psnr"]
        texts = {name: "" if name == "original" else _outcome(kind, outcomes[name]) for name in crops}
    return [
        {
            "name": name,
            "kind": kind,
            "picture": _embed(crop, **_SIZES[kind]),
            "text": texts[name],
            "verdict": _verdict(outcomes[name], item["text"]) if kind == "word" else "",
            "alt": f"{kind} of {item['path']}, {name}{': ' if texts[name] else ''}{texts[name]}",
        }
        for name, crop in crops.items()
    ]


def _outcome(kind: str, value: float | None) -> str:
    return f"{value:.2f}" if kind == "face" else f"{show_number(value)} dB"


def _verdict(read: str, text: str) -> str:
    if read == text:
        return "right"
    return "case" if letters(text) and letters(read) == letters(text) else "wrong"


def _notes(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the notes on scores, each with the metric, set and tokenizers that it applies to."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for result in evaluation.results:
        for metric, score in result.metrics.items():
            if score.note:
                found.setdefault((result.data, metric, score.note), []).append(result.tokenizer)
    number_of_tokenizers, metric_info = len(evaluation.tokenizers), metric_info_of(evaluation.results)
    return [
        (", ".join([metric_info(metric).label, data, *(names if len(names) < number_of_tokenizers else [])]), note)
        for (data, metric, note), names in found.items()
    ]


def _networks(results: list[Result]) -> list[tuple[str, str]]:
    """Return every network behind a score, with its hash."""
    found = {
        score.network: score.sha256 or ""
        for result in results
        for score in result.metrics.values()
        if score.network is not None
    }
    return sorted(found.items())


def _embed(picture: Picture, height: int | None = None, widest: int = WIDEST) -> str:
    """Encode a picture as a data URL; crops are resized to a fixed height, and are at least one pixel wide.

    JPEG at this quality takes a quarter of the bytes of PNG, and does not visibly change the artifacts of other codecs.
    """
    image = Image.fromarray(picture)
    if height is not None:
        width = min(max(1, round(image.width * height / image.height)), _MAX_ASPECT_RATIO * height)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif max(image.size) > widest:
        image.thumbnail((widest, widest), Image.Resampling.LANCZOS)
    data = encode(np.asarray(image), "JPEG", quality=92, subsampling=0)  # no chroma subsampling
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
