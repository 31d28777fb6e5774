"""GenEval's rules on given detections; every expected verdict was worked out by hand."""

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
    """Returns the given answers in turn."""

    name, sha256, size = "colours", "3", "a list"

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def colour(self, crop: np.ndarray, name: str) -> str:
        return self.answers.pop(0)


def detection(name: str, score: float = 0.95, box: Box = (0.0, 0.0, 10.0, 10.0)) -> DetectedObject:
    return DetectedObject(name, box, score)


def verdict(wanted: dict[str, Any], detections: Sequence[DetectedObject], *colours: str) -> bool:
    return judge({"prompt": "p", **wanted}, PICTURE, detections, Colours(*colours)).correct


def test_object_scores_must_exceed_three_tenths() -> None:
    bench = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    assert verdict(bench, [detection("bench", 0.31)])
    assert not verdict(bench, [detection("bench", 0.3)])
    assert not verdict(bench, [detection("dog")])


def test_counting_is_exact_and_needs_scores_above_nine_tenths() -> None:
    three = {
        "tag": "counting",
        "include": [{"class": "cat", "count": 3}],
        "exclude": [{"class": "cat", "count": 4}],
    }
    assert verdict(three, [detection("cat", 0.91)] * 3)
    assert not verdict(three, [detection("cat", 0.91)] * 2 + [detection("cat", 0.9)])
    assert not verdict(three, [detection("cat")] * 4)
    assert verdict(three, [detection("cat")] * 3 + [detection("cat", 0.5)])  # the fourth's score is too low to count
    many = {"tag": "counting", "include": [{"class": "cat", "count": 1}], "exclude": [{"class": "cat", "count": 17}]}
    assert verdict(many, [detection("cat")] * 20)  # at most 16 are counted


def test_colours_are_judged_on_the_objects_with_the_highest_scores() -> None:
    red = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    assert verdict(red, [detection("car", 0.4), detection("car", 0.9)], "red")  # count 1: only the best one is judged
    assert not verdict(red, [detection("car")], "blue")
    two = {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "black"}],
    }
    assert verdict(two, [detection("dog"), detection("car")], "red", "black")
    assert not verdict(two, [detection("dog"), detection("car")], "black", "red")


def test_relations_by_hand() -> None:
    """Two boxes of 20 x 20: a tenth of their summed sizes is 4 on each axis."""
    middle = (40.0, 40.0, 60.0, 60.0)
    assert relations((0.0, 40.0, 20.0, 60.0), middle) == {"left of"}  # 36 of 40 remain
    assert relations((80.0, 40.0, 100.0, 60.0), middle) == {"right of"}
    assert relations((40.0, 0.0, 60.0, 20.0), middle) == {"above"}
    assert relations((0.0, 80.0, 20.0, 100.0), middle) == {"left of", "below"}  # 36 of 56.6 on both axes: .64
    assert relations((44.0, 40.0, 64.0, 60.0), middle) == set()  # 4 apart: nothing remains
    assert relations((47.0, 40.0, 67.0, 60.0), middle) == set()  # 3 of 7 are less than half
    assert relations((49.0, 40.0, 69.0, 60.0), middle) == {"right of"}  # 5 of 9 are more
    assert relations((0.0, 60.0, 20.0, 80.0), middle) == {"left of"}  # below: 16 of 44.7 is .36


def test_positions_are_judged_relative_to_the_target_object() -> None:
    wanted = {
        "tag": "position",
        "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
    }
    left, right = (0.0, 40.0, 20.0, 60.0), (60.0, 40.0, 80.0, 60.0)
    assert verdict(wanted, [detection("cup", box=left), detection("dog", box=right)])
    assert not verdict(wanted, [detection("cup", box=right), detection("dog", box=left)])
    found = judge({"prompt": "p", **wanted}, PICTURE, [detection("dog", box=right)], Colours())
    assert found.reasons == ("0 cup, 1 are wanted", "nothing for dog to be right of")
    # The dog with the highest score counts, although another one is right of the cup.
    both = [detection("cup", box=(30.0, 40.0, 50.0, 60.0)), detection("dog", 0.9, left), detection("dog", 0.8, right)]
    assert not verdict(wanted, both)


def test_cropped_object_has_a_grey_background() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:15, 10:20] = True
    crop = crop_object(PICTURE, DetectedObject("cat", (10.0, 10.0, 20.0, 20.0), 1.0, mask))
    assert crop.shape == (10, 10, 3)
    assert (crop[:5] == 200).all()
    assert (crop[5:] == 0x99).all()
    assert crop_object(PICTURE, detection("cat", box=(-5.0, 90.0, 300.0, 300.0))).shape == (10, 100, 3)


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
def test_rejects_lines_that_do_not_have_geneval_s_format(line: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no line of its prompts") as raised:
        judge(line, PICTURE, [detection("cat")], Colours())
    assert "\n" not in str(raised.value)


def test_errors_of_the_colour_classifier_are_not_reported_as_format_errors() -> None:
    class Broken(Colours):
        def colour(self, crop: np.ndarray, name: str) -> str:
            return {}["a bug"]

    wanted = {"tag": "colors", "prompt": "a red cat", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    with pytest.raises(KeyError, match="a bug"):
        judge(wanted, np.zeros((8, 8, 3), np.uint8), [detection("cat")], Broken())
