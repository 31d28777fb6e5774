"""One self-contained HTML page: scores, differences, and the pictures behind them."""

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
from imtok.data.sample import TextRegion
from imtok.evaluation.results import Evaluation, Example, Result, Score, label, show_interval, show_number
from imtok.evaluation.statistics import CONFIDENCE, MIN_ITEMS
from imtok.evaluation.text import crop_word, letters

_WIDEST = 384
"""Pixels; larger pictures are shrunk for the page."""
_CROPS = 6
"""Words and faces of one picture that are shown enlarged."""


def write_report(evaluation: Evaluation, file: Path) -> None:
    """Write the page. It needs no other file and no network."""
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
        label=label,
        tables=[_table(evaluation, data.name) for data in evaluation.sets],
        gallery=[(data.name, list(_gallery(evaluation, data.name))) for data in evaluation.sets],
        networks=_networks(evaluation.results),
    )
    write_text(file, page)


def _table(evaluation: Evaluation, data: str) -> dict[str, Any]:
    """A set's scores: a row for each metric, a column for each tokenizer."""
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
    """The examples of a set: pictures, then words and faces enlarged."""
    shown = [name for name, about in evaluation.tokenizers.items() if not about["is_check"]]
    for example in evaluation.examples:
        if example.data == data:
            pictures = {"original": example.original, **{name: example.drawn[name] for name in shown}}
            yield {
                "path": example.path,
                "pictures": [(name, _embed(picture)) for name, picture in pictures.items()],
                "words": [_word(example, item, pictures) for item in example.words[:_CROPS]],
                "faces": [_face(example, item, pictures) for item in example.faces[:_CROPS]],
            }


def _word(example: Example, item: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[dict[str, Any]]:
    region = TextRegion(box=tuple(item["box"]), text=item["text"])
    read = {"original": item["original"], **item["read"]}
    return [
        {
            "picture": _embed(crop_word(picture, region), height=56),
            "text": read[name] or "nothing",
            "verdict": _verdict(read[name], item["text"]),
        }
        for name, picture in pictures.items()
    ]


def _verdict(read: str, text: str) -> str:
    if read == text:
        return "right"
    return "case" if letters(text) and letters(read) == letters(text) else "wrong"


def _face(example: Example, item: Mapping[str, Any], pictures: Mapping[str, Picture]) -> list[dict[str, Any]]:
    x0, y0, x1, y1 = (round(value) for value in item["box"])
    similarity = {"original": 1.0, **item["similarity"]}
    return [
        {"picture": _embed(picture[max(y0, 0) : y1, max(x0, 0) : x1], height=112), "text": f"{similarity[name]:.2f}"}
        for name, picture in pictures.items()
    ]


def _networks(results: list[Result]) -> list[tuple[str, str]]:
    """Every network behind a number, with its hash."""
    found = {
        score.network: score.sha256 or ""
        for result in results
        for score in result.metrics.values()
        if score.network is not None
    }
    return sorted(found.items())


def _embed(picture: Picture, height: int | None = None) -> str:
    """A data address; small pictures stay as they are, crops are enlarged to a height."""
    image = Image.fromarray(picture)
    if height is not None:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC)
    elif max(image.size) > _WIDEST:
        image.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
    small = max(image.size) <= 256
    data = encode(np.asarray(image)) if small else encode(np.asarray(image), "JPEG", quality=90)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data).decode()}"
