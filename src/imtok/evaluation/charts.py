"""Quality over rate, as in Figure 1 of InsightTok: where everything lies in a small drawing; the page draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imtok.evaluation.metric_names import metric_info
from imtok.evaluation.results import Evaluation, Result, Score, show_interval, show_number, show_score

METRICS = ("text_accuracy", "face_similarity", "psnr", "vgg16_distance")
"""Of each a chart, where it was measured."""
WIDTH = 340
"""Of a drawing, in its own units: about the pixels of a telephone, so that the letters keep their size there."""
LEFT, RIGHT, TOP, TALL = 42, 196, 10, 170
"""The frame: left and right, top, and the least height."""
LABEL_LEFT, LABEL_STEP, LABEL_LETTERS = 214, 15, 19
"""Labels stand in a column beside the frame, so far apart and so long that they cannot meet."""
COLOURS = 10
_LEAST_SPAN = 5
"""Of the rates: highest over lowest, so that there are two marks on the axis at least."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A reconstructor in a chart.

    Attributes:
        label: its name, shortened to fit.
        description: the name and all numbers, for a reader who does not see the drawing.
        colour: number of its colour.
        is_codec: drawn as a square.
        x: place of its rate.
        y: place of its score.
        interval: places of the interval's limits, where it has one: low and high.
        x_with_caption: place of its rate together with the caption's, where it hears of one.
        label_y: middle of the label.
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
    """One metric of one set over bits per pixel.

    Attributes:
        data: the set.
        metric: the score.
        bottom: of the frame.
        points: from top to bottom.
        x_marks: places and texts along the axis of the rate.
        y_marks: likewise of the score.
    """

    data: str
    metric: str
    bottom: int
    points: list[Point]
    x_marks: list[tuple[float, str]]
    y_marks: list[tuple[float, str]]


def draw_charts(evaluation: Evaluation, data: str) -> list[Chart]:
    """The charts of a set: of each of `METRICS` that somebody with a known rate has."""
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
    """Who is in no chart of a set, because nobody knows the rate."""
    results = [result for result in evaluation.results if result.data == data and not result.is_check]
    return [result.tokenizer for result in results if not _rate(result)]


def spread(wanted: Sequence[float], low: float, high: float, step: int) -> list[float]:
    """Places near the wanted ones, in their order, `step` apart at least and between `low` and `high`.

    Args:
        wanted: ascending.
        low: of the first place.
        high: of the last; there is room for all.
        step: between neighbours.
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
    """Of the tokens; where there are none, of the caption alone."""
    return _value(result, "bits_per_pixel") or _value(result, "bits_per_pixel_with_caption")


def linear_marks(low: float, high: float) -> list[float]:
    """Round numbers between two limits, two to five."""
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def rate_marks(low: float, high: float) -> list[float]:
    """Of 1, 2 and 5 times powers of ten those between two limits, or the powers alone where these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [mark for mark in marks if low <= mark <= high]
    powers = [10.0**power for power in decades if low <= 10.0**power <= high]
    return inside if len(inside) <= 5 else powers


def shorten(name: str, letters: int = LABEL_LETTERS) -> str:
    """A name without its middle, where it is longer."""
    ahead = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:ahead]}…{name[len(name) - (letters - 1 - ahead) :]}"


@dataclass(frozen=True)
class _Entry:
    """What is known of a point before it has a place."""

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
        """All of it in words."""
        interval = show_interval(self.score)
        caption = "" if self.with_caption is None else f", {show_number(self.with_caption)} with the caption"
        return (
            f"{self.result.tokenizer}: {show_number(self.rate)} bits per pixel{caption}, "
            f"{metric_info(metric, self.score.network).label} {show_score(self.score)}{f' ({interval})' if interval else ''}"
        )


def _value(result: Result, metric: str) -> float | None:
    return result.metrics[metric].value if metric in result.metrics else None


def _chart(data: str, metric: str, entries: Sequence[_Entry]) -> Chart:
    """One chart; the entries come from the highest score down."""
    bottom = TOP + max(TALL, LABEL_STEP * len(entries))
    least, most = _widened([rate for entry in entries for rate in entry.rates])
    low, high = _padded([value for entry in entries for value in (entry.value, *(entry.interval or ()))])

    def x(rate: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(rate / least) / math.log(most / least)

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
        x_marks=[(x(mark), f"{mark:g}") for mark in rate_marks(least, most)],
        y_marks=[(y(mark), f"{mark:.10g}") for mark in linear_marks(low, high)],
    )


def _widened(rates: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis of rates: some room on both sides, and `_LEAST_SPAN` between them at least."""
    low, high = min(rates) / 1.15, max(rates) * 1.15
    more = max(1.0, math.sqrt(_LEAST_SPAN * low / high))
    return low / more, high * more


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis of scores: a twentieth of room on both sides."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room
