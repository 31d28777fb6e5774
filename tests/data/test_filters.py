from dataclasses import replace

import numpy as np
import pytest

from imtok.data.filters import KeepRules
from imtok.data.sample import DataError, Face, Sample, TextRegion

PICTURE = np.full((200, 300, 3), 7, np.uint8)
BARE = Sample(image=b"", path="p.jpg", width=300, height=200, words=[], faces=[])
QUAD = ((0.0, 50.0), (50.0, 0.0), (60.0, 10.0), (10.0, 60.0))
TILTED = TextRegion(box=(0.0, 0.0, 60.0, 60.0), quad=QUAD, text="tilted")
TEXT = replace(BARE, words=[TextRegion(box=(1.0, 2.0, 50.0, 22.0), text="hi"), TILTED])
FACE = replace(BARE, faces=[Face(box=(10.0, 10.0, 60.0, 90.0))])


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ((), "bare text face"),
        (("text",), "text"),
        (("face",), "face"),
        (("text|face",), "text face"),
        (("text", "face"), ""),
        (("text | min_face=50",), "text face"),
        (("min_face=51",), ""),
        (("min_word_height=20",), "text"),
        (("min_word_height=20.5",), ""),  # the tilted word's box is 60 high, its letters 14
        (("min_side=200",), "bare text face"),
        (("min_side=201",), ""),
        (("min_side=201|face", "min_side=100"), "face"),
    ],
)
def test_keep_rules(rules, kept):
    keeps = KeepRules(rules)
    samples = {"bare": BARE, "text": TEXT, "face": FACE}
    assert [name for name, sample in samples.items() if keeps(sample, PICTURE)] == kept.split()


def test_aesthetic_rule_uses_and_requires_a_scorer():
    def brightness(picture) -> float:
        return float(picture.mean())

    assert KeepRules(["min_aesthetic=7"], scorer=brightness)(BARE, PICTURE)
    assert not KeepRules(["min_aesthetic=7.1"], scorer=brightness)(BARE, PICTURE)
    with pytest.raises(DataError, match="min_aesthetic needs an aesthetic scorer"):
        KeepRules(["min_aesthetic=5"])


def test_rejects_unknown_or_malformed_rules():
    for rule in ("txt", "min_face", "text=3", "min_side>3", ""):
        with pytest.raises(DataError, match="does not exist; there are text, face"):
            KeepRules([rule])
    with pytest.raises(DataError, match="'big' is not a number"):
        KeepRules(["min_side=big"])


def test_raises_if_annotations_that_a_rule_needs_are_missing():
    unknown = replace(BARE, words=None, faces=None)
    with pytest.raises(DataError, match=r"p\.jpg: .* add --text"):
        KeepRules(["text"])(unknown, PICTURE)
    with pytest.raises(DataError, match="add --faces"):
        KeepRules(["min_face=3"])(unknown, PICTURE)
