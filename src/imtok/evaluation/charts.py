"""Charts of quality over rate, as in Figure 1 of InsightTok: coordinates only; the report's templates render them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imtok.evaluation.metric_names import metric_info
from imtok.evaluation.results import Evaluation, Result, Score, show_interval, show_number, show_score

METRICS = ("text_accuracy", "face_similarity", "psnr", "vgg16_distance")
"""Metrics that are charted if they were measured."""
WIDTH = 340
"""Width of a chart in user units: about that of a telephone's screen in pixels, so that text keeps its size there."""
LEFT, RIGHT, TOP, TALL = 42, 196, 10, 170
"""The plot frame: left edge, right edge, top edge, and minimum height."""
LABEL_LEFT, LABEL_STEP, LABEL_LETTERS = 214, 15, 19
"""Labels form a column beside the frame: its left edge, their spacing, and their maximum number of characters."""
COLOURS = 10
_MIN_RATE_RATIO = 5
"""Minimum ratio of the highest to the lowest rate on the axis, so that it has at least two tick marks."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A reconstructor in a chart.

    Attributes:
        label: its name, shortened to fit.
        description: its name and all numbers, as text for screen readers.
        colour: index of its colour.
        is_codec: whether it is a codec, drawn as a square.
        x: x coordinate of its rate.
        y: y coordinate of its score.
        interval: y coordinates of the interval's limits, low and high; None without an interval.
        x_with_caption: x coordinate of its rate including the caption; None if it is not conditioned on captions.
        label_y: y coordinate of the label's middle.
    """

    label: str
    description: str
    colour: int
    is_codec: bool
    x: float
    y: float
    interval: tuple[float, float] | None
    x_with_caption: float | None
    label_y: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One metric on one set over bits per pixel.

    Attributes:
        data: name of the set.
        metric: name of the metric.
        bottom: y coordinate of the frame's bottom edge.
        points: points from the highest score down.
        x_marks: coordinates and texts of the rate axis's tick marks.
        y_marks: coordinates and texts of the score axis's tick marks.
    """

    data: str
    metric: str
    bottom: int
    points: list[Point]
    x_marks: list[tuple[float, str]]
    y_marks: list[tuple[float, str]]


def draw_charts(evaluation: Evaluation, data: str) -> list[Chart]:
    """Return the charts of a set: one for each of `METRICS` that was measured for a reconstructor with a known rate."""
    results = [result for result in evaluation.results if result.data == data and not result.is_check]
    charts = []
    for metric in METRICS:
        entries = []
        for number, result in enumerate(results):
            rate, score = _rate(result), result.metrics.get(metric)
            if rate and score is not None and score.value is not None:
                entries.append(_Entry(result, number, rate, _value(result, "bits_per_pixel_with_caption"), score))
        if entries:
            charts.append(_chart(data, metric, sorted(entries, key=lambda entry: -entry.value)))
    return charts


def without_rate(evaluation: Evaluation, data: str) -> list[str]:
    """Return the reconstructors that are in no chart of a set because their rate is unknown."""
    results = [result for result in evaluation.results if result.data == data and not result.is_check]
    return [result.tokenizer for result in results if not _rate(result)]


def spread(wanted: Sequence[float], low: float, high: float, step: int) -> list[float]:
    """Move positions apart: near the wanted ones, in their order, at least `step` apart, from `low` to `high`.

    Args:
        wanted: wanted positions, ascending.
        low: lower limit of the positions.
        high: upper limit of the positions; there must be room for all of them.
        step: minimum distance between neighbours.
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + step if places else low))
    limit = high
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - step
    return places


def _rate(result: Result) -> float | None:
    """Return the rate of the tokens, or if there are none, that of the caption alone."""
    return _value(result, "bits_per_pixel") or _value(result, "bits_per_pixel_with_caption")


def linear_marks(low: float, high: float) -> list[float]:
    """Return two to five round numbers between two limits."""
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def rate_marks(low: float, high: float) -> list[float]:
    """Return the powers of ten and their multiples by 2 and 5 between two limits; only the powers if these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [mark for mark in marks if low <= mark <= high]
    powers = [10.0**power for power in decades if low <= 10.0**power <= high]
    return inside if len(inside) <= 5 else powers


def shorten(name: str, letters: int = LABEL_LETTERS) -> str:
    """Replace the middle of a name by an ellipsis if the name is longer than `letters` characters."""
    ahead = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:ahead]}…{name[len(name) - (letters - 1 - ahead) :]}"


@dataclass(frozen=True)
class _Entry:
    """The values of a point before its coordinates are computed."""

    result: Result
    number: int
    rate: float
    with_caption: float | None
    score: Score

    @property
    def value(self) -> float:
        assert self.score.value is not None, "what has no value has no place in a chart"
        return self.score.value

    @property
    def rates(self) -> list[float]:
        return [self.rate] if self.with_caption is None else [self.rate, self.with_caption]

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.score.low is None or self.score.high is None else (self.score.low, self.score.high)

    def description(self, metric: str) -> str:
        """Describe all values in words."""
        interval = show_interval(self.score)
        caption = "" if self.with_caption is None else f", {show_number(self.with_caption)} with the caption"
        return (
            f"{self.result.tokenizer}: {show_number(self.rate)} bits per pixel{caption}, "
            f"{metric_info(metric, self.score.network).label} {show_score(self.score)}"
            f"{f' ({interval})' if interval else ''}"
        )


def _value(result: Result, metric: str) -> float | None:
    return result.metrics[metric].value if metric in result.metrics else None


def _chart(data: str, metric: str, entries: Sequence[_Entry]) -> Chart:
    """Lay out one chart; the entries are sorted by descending score."""
    bottom = TOP + max(TALL, LABEL_STEP * len(entries))
    min_rate, max_rate = _rate_limits([rate for entry in entries for rate in entry.rates])
    low, high = _score_limits([value for entry in entries for value in (entry.value, *(entry.interval or ()))])

    def x(rate: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(rate / min_rate) / math.log(max_rate / min_rate)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - low) / (high - low)

    half = LABEL_STEP / 2
    labels = spread([y(entry.value) for entry in entries], TOP + half, bottom - half, LABEL_STEP)
    points = [
        Point(
            label=shorten(entry.result.tokenizer) + (" *" if entry.score.taught else ""),
            description=entry.description(metric),
            colour=entry.number % COLOURS,
            is_codec=entry.result.is_codec,
            x=x(entry.rate),
            y=y(entry.value),
            interval=None if entry.interval is None else (y(entry.interval[0]), y(entry.interval[1])),
            x_with_caption=None if entry.with_caption is None else x(entry.with_caption),
            label_y=label_y,
        )
        for entry, label_y in zip(entries, labels, strict=True)
    ]
    return Chart(
        data=data,
        metric=metric,
        bottom=bottom,
        points=points,
        x_marks=[(x(mark), f"{mark:g}") for mark in rate_marks(min_rate, max_rate)],
        y_marks=[(y(mark), f"{mark:.10g}") for mark in linear_marks(low, high)],
    )


def _rate_limits(rates: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the rate axis: a margin on both sides, and a ratio of at least `_MIN_RATE_RATIO`."""
    low, high = min(rates) / 1.15, max(rates) * 1.15
    widening = max(1.0, math.sqrt(_MIN_RATE_RATIO * low / high))
    return low / widening, high * widening


def _score_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the score axis, with a margin of one twentieth of the range on both sides."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin
