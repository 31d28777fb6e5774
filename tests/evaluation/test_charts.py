"""Charts of quality over rate: coordinates computed by hand, and labels that never overlap."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imtok.evaluation.best_worst import Case
from imtok.evaluation.charts import (
    LABEL_STEP,
    LEFT,
    RIGHT,
    TALL,
    TOP,
    WIDTH,
    draw_charts,
    linear_marks,
    rate_marks,
    shorten,
    spread,
    without_rate,
)
from imtok.evaluation.report import write_report
from imtok.evaluation.results import Comparison, Evaluation, Example, Result, Score
from imtok.evaluation.sets import DatasetSummary


def evaluation_of(points: dict[str, dict[str, Score]], checks: tuple[str, ...] = ()) -> Evaluation:
    """Return an evaluation of one set, `signs`, with these scores of each reconstructor."""
    data = DatasetSummary(
        name="signs",
        pictures=20,
        groups=20,
        sha256="a" * 64,
        paths_sha256="b" * 64,
        annotations_sha256="c" * 64,
        unreadable=0,
    )
    results = [
        Result(
            tokenizer=name, data="signs", is_check=name in checks, is_codec=name.startswith("jpeg:3"), metrics=metrics
        )
        for name, metrics in points.items()
    ]
    tokenizers = {name: {"teachers": [], "is_check": name in checks} for name in points}
    return Evaluation(
        tokenizers=tokenizers, sets=[data], results=results, comparisons=[], preprocessing="as they are", examples=[]
    )


def scores_at(
    rate: float, value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, Score]:
    return {"bits_per_pixel": Score(value=rate), "psnr": Score(value=value, low=low, high=high)}


def test_tokenizer_without_tokens_is_charted_at_its_caption_rate() -> None:
    caption_only = {**scores_at(0.0, 20.0), "bits_per_pixel_with_caption": Score(value=0.05)}
    found = evaluation_of({"alone": caption_only, "both": scores_at(0.1, 21.0)})
    (chart,) = draw_charts(found, "signs")
    assert [point.label for point in chart.points] == ["both", "alone"]
    assert chart.points[1].x < chart.points[0].x
    assert not without_rate(found, "signs")


def test_tokenizer_named_like_a_codec_is_not_charted_as_one() -> None:
    (chart,) = draw_charts(evaluation_of({"jpeg:9000": scores_at(0.1, 20.0)}), "signs")
    assert not chart.points[0].is_codec


def test_point_coordinates_match_manual_computation() -> None:
    found = evaluation_of(
        {
            "a": scores_at(0.1, 20.0, 19.0, 21.0),
            "jpeg:30": scores_at(1.0, 30.0),
            "identity": scores_at(9.0, 99.0),
            "equal": scores_at(0.2, None),
            "folder": {"psnr": Score(value=25.0)},
        },
        checks=("identity",),
    )
    (chart,) = draw_charts(found, "signs")
    high, low = chart.points
    # The best on top; without a rate or a score, no point.
    assert [point.label for point in chart.points] == ["jpeg:30", "a"]
    assert without_rate(found, "signs") == ["folder"]
    assert (low.is_codec, high.is_codec) == (False, True)
    # Rates from .1 / 1.15 to 1 * 1.15 on a logarithmic axis.
    margin = np.log(1.15) / np.log(10 * 1.15**2)
    assert low.x == pytest.approx(LEFT + margin * (RIGHT - LEFT))
    assert high.x == pytest.approx(RIGHT - margin * (RIGHT - LEFT))
    # Scores from 19 to 30 with a margin of a twentieth of 11 on both sides, so 12.1 in all; the frame extends down
    # from TOP.
    bottom = TOP + TALL
    assert chart.bottom == bottom
    assert low.y == pytest.approx(bottom - TALL * 1.55 / 12.1)
    assert high.y == pytest.approx(bottom - TALL * 11.55 / 12.1)
    assert low.interval == pytest.approx((bottom - TALL * 0.55 / 12.1, bottom - TALL * 2.55 / 12.1))
    assert high.interval is None
    assert dict((text, y) for y, text in chart.y_marks)["20"] == pytest.approx(low.y)
    assert {text for _, text in chart.x_marks} == {"0.1", "0.2", "0.5", "1"}
    assert low.description == "a: 0.100 bits per pixel, PSNR 20.00 (19.00 to 21.00)"


def test_star_marks_scores_by_networks_used_in_training() -> None:
    found = evaluation_of({"a": {"bits_per_pixel": Score(value=0.1), "psnr": Score(value=20.0, taught=True)}})
    (point,) = draw_charts(found, "signs")[0].points
    assert (point.label, point.description) == ("a *", "a: 0.100 bits per pixel, PSNR 20.00 *")


def test_report_tabulates_differences_with_a_column_per_pair(tmp_path: Path) -> None:
    found = evaluation_of({name: scores_at(0.1, 20.0) for name in "abc"})
    pairs = [("b", "psnr", 1.0, 2.0), ("b", "vgg16_distance", 1.0, 2.0), ("c", "vgg16_distance", -1.0, 2.0)]
    comparisons = [
        Comparison(
            tokenizer=name, baseline="a", data="signs", metric=metric, difference=1.5, low=low, high=high, count=9
        )
        for name, metric, low, high in pairs
    ]
    write_report(replace(found, comparisons=comparisons), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"<th>(\w)<small>&minus; (\w)</small>", page) == [("b", "a"), ("c", "a")]
    table = page[page.index("<h3>signs</h3>") : page.index("<h2>Scores</h2>")]
    classes = [re.findall(r'<td class="(\w*)">', row) for row in table.split("<tr>")[2:]]
    assert classes == [["good", ""], ["bad", ""]]  # a larger distance is worse; c has no comparison of PSNR
    assert table.count("n = 9") == 3


def test_chart_shows_the_rate_with_and_without_the_caption() -> None:
    with_caption = scores_at(0.1, 20.0) | {"bits_per_pixel_with_caption": Score(value=0.4)}
    (chart,) = draw_charts(evaluation_of({"a": with_caption, "b": scores_at(0.4, 21.0)}), "signs")
    b, a = chart.points
    assert a.x_with_caption == pytest.approx(b.x)
    assert b.x_with_caption is None
    assert "0.400 with the caption" in a.description


def test_labels_of_equal_scores_do_not_overlap_and_stay_inside() -> None:
    names = [f"a folder with a very long name/number {index}" for index in range(14)]
    (chart,) = draw_charts(evaluation_of({name: scores_at(0.1, 20.0) for name in names}), "signs")
    label_positions = [point.label_y for point in chart.points]
    assert np.diff(label_positions).min() >= LABEL_STEP - 1e-9
    assert label_positions[0] >= TOP
    assert label_positions[-1] <= chart.bottom
    letter_width = 0.6 * 11  # a generous estimate of a letter's width at 11 pixels
    assert 214 + max(len(point.label) for point in chart.points) * letter_width * 0.9 <= WIDTH


def test_spread_moves_only_positions_that_are_too_close() -> None:
    for wanted, expected in (([10, 50, 90], [10, 50, 90]), ([50, 50, 52], [50, 65, 80]), ([95, 98], [85, 100])):
        assert spread([float(position) for position in wanted], 0.0, 100.0, 15) == expected


def test_axis_marks_are_round_numbers() -> None:
    assert linear_marks(18.45, 30.55) == [20, 25, 30]
    assert linear_marks(0.41, 0.79) == pytest.approx([0.5, 0.6, 0.7])
    assert linear_marks(0.067, 0.87) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate_marks(0.04, 0.3) == pytest.approx([0.05, 0.1, 0.2])
    assert rate_marks(0.01, 100.0) == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_shortened_names_keep_both_ends() -> None:
    assert shorten("insighttok-nano, wrong captions", 21) == "insighttok…g captions"
    assert shorten("short") == "short"


def test_report_is_self_contained_and_its_images_have_alt_texts(tmp_path: Path) -> None:
    found = evaluation_of(
        {"a": scores_at(0.1, 20.0, 19.0, 21.0), "b": scores_at(0.1, 21.0), "<b>&": scores_at(0.3, 21.5)}
    )
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    word = {"kind": "word", "row": 0, "path": "x.png", "box": [5.0, 5.0, 30.0, 20.0], "text": "<i>", "original": "<i>"}
    word |= {"read": {"a": "", "b": "i", "<b>&": "<i>"}}
    face = {"kind": "face", "row": 0, "path": "x.png", "box": [5.0, 5.0, 30.0, 20.0]}
    face |= {"similarity": {"a": 0.5, "b": 0.6, "<b>&": 0.7}}
    names = ["original", *found.tokenizers]
    found.examples.append(
        Example(
            data="signs",
            path="x.png",
            pictures=dict.fromkeys(names, picture),
            texts={"a": "a <b>red</b> sign"},
            parts=[(item, dict.fromkeys(names, picture[5:20, 5:30])) for item in (word, face)],
        )
    )
    found.cases.append(
        Case(
            data="signs",
            tokenizer="b",
            baseline="a",
            item=word,
            value=0.33,
            better=True,
            original=picture,
            reconstructions={"a": picture, "b": picture},
        )
    )
    found.reproduction.update(command="imtok evaluate a", versions={"python": "3"})
    write_report(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.lstrip().startswith("<!doctype html>")
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    links = re.findall(r"""(?:src|href|xlink:href)\s*=\s*["']([^"']*)""", page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) == 4 + 4 + 4 + 3  # an example's pictures, its word and its face, and a case
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert "<i>" not in page  # texts from outside are escaped
    assert "a, given “a &lt;b&gt;red&lt;/b&gt; sign”" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 1
    assert 'role="img"' in svgs[0]
    assert "imtok evaluate a" in page
    assert "b" * 64 in page
