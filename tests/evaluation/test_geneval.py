"""GenEval's rules on recorded detections; every verdict was worked out by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from imtok.config import ConfigError
from imtok.data.sample import Box
from imtok.evaluation.geneval import crop_object, judge, relations
from imtok.pretrained.objects import DetectedObject

PICTURE = np.full((100, 100, 3), 200, dtype=np.uint8)


class Colours:
    """Answers in turn."""

    name, sha256, size = "colours", "3", "a list"

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def colour(self, crop: np.ndarray, name: str) -> str:
        return self.answers.pop(0)


def seen(name: str, score: float = 0.95, box: Box = (0.0, 0.0, 10.0, 10.0)) -> DetectedObject:
    return DetectedObject(name, box, score)


def verdict(wanted: dict[str, Any], detections: Sequence[DetectedObject], *colours: str) -> bool:
    return judge({"prompt": "p", **wanted}, PICTURE, detections, Colours(*colours)).correct


def test_an_object_must_be_more_certain_than_three_tenths() -> None:
    bench = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    assert verdict(bench, [seen("bench", 0.31)])
    assert not verdict(bench, [seen("bench", 0.3)])
    assert not verdict(bench, [seen("dog")])


def test_counting_is_exact_and_asks_for_more_certainty() -> None:
    three = {
        "tag": "counting",
        "include": [{"class": "cat", "count": 3}],
        "exclude": [{"class": "cat", "count": 4}],
    }
    assert verdict(three, [seen("cat", 0.91)] * 3)
    assert not verdict(three, [seen("cat", 0.91)] * 2 + [seen("cat", 0.9)])
    assert not verdict(three, [seen("cat")] * 4)
    assert verdict(three, [seen("cat")] * 3 + [seen("cat", 0.5)])  # the fourth is too uncertain to be one too many
    many = {"tag": "counting", "include": [{"class": "cat", "count": 1}], "exclude": [{"class": "cat", "count": 17}]}
    assert verdict(many, [seen("cat")] * 20)  # no more than 16 are looked at


def test_colours_are_those_of_the_most_certain_objects() -> None:
    red = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    assert verdict(red, [seen("car", 0.4), seen("car", 0.9)], "red")  # one is asked about, so one is judged
    assert not verdict(red, [seen("car")], "blue")
    two = {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "black"}],
    }
    assert verdict(two, [seen("dog"), seen("car")], "red", "black")
    assert not verdict(two, [seen("dog"), seen("car")], "black", "red")


def test_relations_by_hand() -> None:
    """Two boxes of 20 x 20: a tenth of both sizes is 4 on each axis."""
    middle = (40.0, 40.0, 60.0, 60.0)
    assert relations((0.0, 40.0, 20.0, 60.0), middle) == {"left of"}  # 36 of 40 left over
    assert relations((80.0, 40.0, 100.0, 60.0), middle) == {"right of"}
    assert relations((40.0, 0.0, 60.0, 20.0), middle) == {"above"}
    assert relations((0.0, 80.0, 20.0, 100.0), middle) == {"left of", "below"}  # 36 of 56.6 on both axes: .64
    assert relations((44.0, 40.0, 64.0, 60.0), middle) == set()  # 4 apart: nothing left over
    assert relations((47.0, 40.0, 67.0, 60.0), middle) == set()  # 3 of 7 are less than half
    assert relations((49.0, 40.0, 69.0, 60.0), middle) == {"right of"}  # 5 of 9 are more
    assert relations((0.0, 60.0, 20.0, 80.0), middle) == {"left of"}  # below: 16 of 44.7 is .36


def test_positions_need_their_target() -> None:
    wanted = {
        "tag": "position",
        "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
    }
    left, right = (0.0, 40.0, 20.0, 60.0), (60.0, 40.0, 80.0, 60.0)
    assert verdict(wanted, [seen("cup", box=left), seen("dog", box=right)])
    assert not verdict(wanted, [seen("cup", box=right), seen("dog", box=left)])
    found = judge({"prompt": "p", **wanted}, PICTURE, [seen("dog", box=right)], Colours())
    assert found.reasons == ("0 cup, 1 are wanted", "nothing for dog to be right of")
    # The most certain dog counts, though another one would do.
    both = [seen("cup", box=(30.0, 40.0, 50.0, 60.0)), seen("dog", 0.9, left), seen("dog", 0.8, right)]
    assert not verdict(wanted, both)


def test_what_is_not_the_object_is_grey() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:15, 10:20] = True
    crop = crop_object(PICTURE, DetectedObject("cat", (10.0, 10.0, 20.0, 20.0), 1.0, mask))
    assert crop.shape == (10, 10, 3)
    assert (crop[:5] == 200).all()
    assert (crop[5:] == 0x99).all()
    assert crop_object(PICTURE, seen("cat", box=(-5.0, 90.0, 300.0, 300.0))).shape == (10, 100, 3)


@pytest.mark.parametrize(
    "line",
    [
        {"tag": "counting"},
        {"tag": "attribute", "prompt": "a cat", "include": [{"class": "cat", "count": 1}]},
        {"tag": "position", "prompt": "a cat", "include": [{"class": "cat"}]},
        {"tag": "position", "prompt": "a cat", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]},
        {"tag": "position", "prompt": "a cat", "include": [{"class": 3, "count": 1}]},
    ],
)
def test_other_lines_are_refused(line: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no line of its prompts") as refused:
        judge(line, PICTURE, [seen("cat")], Colours())
    assert "\n" not in str(refused.value)


def test_errors_of_somebody_s_judge_are_not_taken_for_the_prompt_s() -> None:
    class Broken(Colours):
        def colour(self, crop: np.ndarray, name: str) -> str:
            return {}["a bug"]

    wanted = {"tag": "colors", "prompt": "a red cat", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    with pytest.raises(KeyError, match="a bug"):
        judge(wanted, np.zeros((8, 8, 3), np.uint8), [seen("cat")], Broken())
