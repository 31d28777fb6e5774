import re

import numpy as np
import pytest

from imtok.data.grounds import COLOURS
from imtok.data.pictures import decode
from imtok.data.plain_signs import EXAMPLE, LONGEST_WORD, PlainSigns, PlainSplit
from imtok.data.sample import DataError
from imtok.data.shards import ShardReader
from imtok.data.synthetic import synthesize
from imtok.data.vocabulary import in_split

PROMPT = re.compile(r"an? (\w+) sign that says (\S+)")


def colours_and_words(split: PlainSplit, count: int) -> list[tuple[str, str]]:
    """Return the colour and the word of each of `count` signs."""
    found = []
    for sample in PlainSigns(count, split=split):
        match = PROMPT.fullmatch(sample.captions[0])
        assert match
        found.append((match[1], match[2]))
    return found


def test_sign_matches_its_prompt():
    for sample in PlainSigns(40):
        match = PROMPT.fullmatch(sample.captions[0])
        assert match
        assert sample.words
        (word,) = sample.words
        assert word.text == match[2]
        assert len(word.text) <= LONGEST_WORD
        pixels = decode(sample.image, sample.path).astype(int)
        ground = pixels[0, 0]
        assert abs(ground - COLOURS[match[1]]).max() <= 12
        different = abs(pixels - ground).sum(2) > 0
        rows, columns = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
        assert word.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert columns[0] > 0
        assert columns[-1] < 127


def test_held_out_words_and_combinations_are_not_in_train():
    trained, combined, unseen = (colours_and_words(split, 300) for split in ("train", "combinations", "words"))
    words = {word for _, word in trained}
    assert not set(trained) & set(combined)
    assert not words & {word for _, word in unseen}
    assert EXAMPLE[1] in words
    assert all(in_split(word, "train") for _, word in combined if word.isalpha())  # words of train, in other colours
    assert all(in_split(word, "test") for _, word in unseen if word.isalpha())
    assert {colour for colour, _ in combined} == set(COLOURS) == {colour for colour, _ in trained}


def test_same_seed_gives_same_signs():
    assert PlainSigns(9, seed=4)[7] == PlainSigns(30, seed=4)[7] != PlainSigns(9, seed=5)[7]


def test_synthesize_writes_plain_signs(tmp_path):
    synthesize(
        str(tmp_path / "signs"), count=3, plain=True, split="combinations", seed=2, labels=("food",), steady=True
    )
    expected = PlainSigns(3, seed=2, split="combinations", labels=["food"], steady=True)
    assert list(ShardReader(str(tmp_path / "signs"))) == list(expected)


def test_steady_signs_differ_only_by_word_and_colour():
    found: dict[str, set[tuple[float, ...]]] = {}
    for sign in PlainSigns(400, labels=["animal"], steady=True):
        (word,) = sign.words or []
        left, top, right, bottom = word.box
        assert abs(left + right - 128) <= 2
        assert abs(top + bottom - 128) <= 2
        found.setdefault(word.text, set()).add(word.box)
    assert {len(places) for places in found.values()} == {1}
    assert len(found) > 20


def test_labels_restrict_the_kinds_of_words():
    assert {sign.label for sign in PlainSigns(60, labels=["animal", "food"])} == {"animal", "food"}
    with pytest.raises(DataError, match="no kind of words is called 'paragraph'; there are street, shop"):
        PlainSigns(1, labels=["animal", "paragraph"])


def test_colours_restrict_the_signs_and_keep_the_split(tmp_path):
    synthesize(str(tmp_path / "signs"), count=130, plain=True, colours=("white", "red"))
    signs = list(ShardReader(str(tmp_path / "signs")))
    prompts = [sign.captions[0] for sign in signs]
    assert {prompt.split()[1] for prompt in prompts} == {"white", "red"}
    assert all(in_split(prompt.removeprefix("a ").replace("sign that says ", ""), "train") for prompt in prompts[1:64])
    assert prompts[64].endswith(f"says {EXAMPLE[1]}")
    with pytest.raises(DataError, match="no sign is 'beige'; there are red, orange"):
        PlainSigns(1, colours=["red", "beige"])
    with pytest.raises(DataError, match=r"begun with colours = \['white', 'red'\], now it is None"):
        synthesize(str(tmp_path / "signs"), count=130, plain=True)


@pytest.mark.parametrize(
    "options",
    [
        {"plain": True, "split": "test"},
        {"colours": ("red",)},
        {"split": "words"},
        {"plain": True, "paragraphs": True},
        {"labels": ("animal",)},
        {"steady": True},
    ],
)
def test_rejects_unsupported_combinations_of_options(tmp_path, options):
    with pytest.raises(DataError, match=r"there are no .*imtok synthesize --help"):
        synthesize(str(tmp_path / "none"), count=3, **options)
    assert not (tmp_path / "none").exists()


def test_rejects_too_small_signs_and_typefaces_without_letters(monkeypatch):
    with pytest.raises(DataError, match="too small for letters"):
        PlainSigns(1, size=16)
    signs = PlainSigns(1)
    monkeypatch.setattr("imtok.data.fonts.Typeface.draws", lambda face, text: False)
    with pytest.raises(DataError, match="lack the letters"):
        signs[0]
