import re

import numpy as np

from imtok.data import vocabulary
from imtok.data.vocabulary import LABELS, draw_paragraph, draw_words, in_split


def sampled_words(split: str) -> set[str]:
    rng = np.random.default_rng(0)
    words = {word.casefold() for _ in range(3000) for word in draw_words(rng, 3, split)[1]}
    for _ in range(300):
        words |= {word.casefold() for word in re.findall(r"\w+", draw_paragraph(rng, split))}
    return words


def test_splits_share_no_word_and_test_is_about_a_fifth():
    train, test = sampled_words("train"), sampled_words("test")
    assert not train & test
    assert len(train) > 800
    assert len(test) > 200
    assert not {word + "s" for word in test} & train  # nor its plural
    assert in_split("anything", "all")
    assert sum(in_split(f"word{i}", "test") for i in range(1000)) in range(160, 240)


def test_plurals_have_the_stem_of_their_singulars():
    for noun in vocabulary._NOUNS.split():
        assert vocabulary._stem(vocabulary._plural(noun)) == vocabulary._stem(noun), noun


def test_words_belong_to_their_label_and_share_capitalization():
    rng = np.random.default_rng(1)
    labels = set()
    for _ in range(500):
        label, words = draw_words(rng, 2)
        labels.add(label)
        assert len(words) == 2
        if label in vocabulary._WORDS_BY_LABEL:
            assert {word.lower() for word in words} <= set(vocabulary._WORDS_BY_LABEL[label].split())
            assert len({(word.isupper(), word.islower()) for word in words}) == 1
        pattern = {"price": r"[$£€]\d+(\.\d\d)?", "time": r"\d+:\d\d", "number": r"\d+", "plate": r"[A-Z]+\d+"}.get(
            label
        )
        assert pattern is None or all(re.fullmatch(pattern, word) for word in words)
    assert labels == set(LABELS) - {"paragraph"}


def test_paragraphs_have_100_to_300_characters_like_the_papers_quotes():
    rng = np.random.default_rng(2)
    lengths = [len(draw_paragraph(rng)) for _ in range(500)]
    assert min(lengths) >= 100
    assert max(lengths) <= 300
    assert min(lengths) < 130
    assert max(lengths) > 270
