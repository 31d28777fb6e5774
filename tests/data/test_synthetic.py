import collections
import re

import numpy as np
import pytest
from PIL import ImageFont

from imtok.data import fonts, grounds
from imtok.data.pictures import decode, encode
from imtok.data.sample import DataError, Sample, TextRegion
from imtok.data.shards import ShardReader
from imtok.data.synthetic import SyntheticPictures, synthesize
from imtok.data.vocabulary import LABELS, in_split


@pytest.fixture(scope="module")
def signs() -> list[Sample]:
    return list(SyntheticPictures(150, seed=1))


@pytest.fixture(scope="module")
def paragraphs() -> list[Sample]:
    return list(SyntheticPictures(15, size=256, paragraphs=True))


def corners(word: TextRegion) -> np.ndarray:
    x0, y0, x1, y1 = word.box
    return np.array(word.quad or ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


def inside(word: TextRegion, shape: tuple[int, int], grow: float) -> np.ndarray:
    """Return the mask of the pixels whose centre lies in the word's quad with its edges moved outward by `grow`."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    quad = corners(word)
    mask = np.ones(shape, bool)
    for start, end in zip(quad, np.roll(quad, -1, axis=0), strict=True):
        along = (end - start) / np.linalg.norm(end - start)
        mask &= along[0] * (y - start[1]) - along[1] * (x - start[0]) > -grow
    return mask


def test_same_seed_gives_same_pictures(signs):
    again = SyntheticPictures(150, seed=1)
    assert [again[row] for row in (149, 3, 77)] == [signs[149], signs[3], signs[77]]
    assert SyntheticPictures(150, seed=2)[3] != signs[3]


def test_words_lie_inside_the_picture_and_have_the_configured_height(signs):
    for sample in signs:
        picture = decode(sample.image, sample.path)
        assert picture.shape == (128, 128, 3) == (sample.height, sample.width, 3)
        assert sample.words
        assert sample.faces == []
        for word in sample.words:
            quad = corners(word)
            assert quad.min() >= 0
            assert quad.max() <= 128
            assert word.box == pytest.approx((*quad.min(0), *quad.max(0)))
            assert 24 * 0.85 < word.height < 48 * 1.25
            assert word.score == 1
    assert {len(sample.words or []) for sample in signs} == {1, 2, 3}


def test_letters_are_inside_their_boxes_only(monkeypatch):
    # The same signs rendered without letters must differ inside the boxes only.
    pictures = SyntheticPictures(40, seed=5)
    monkeypatch.setattr("imtok.data.synthetic.encode", lambda picture, *_, **__: encode(picture))
    with_letters = list(pictures)
    monkeypatch.setattr("imtok.data.typesetting.SetWord.draw", lambda *_: None)
    for sample, without_letters in zip(with_letters, pictures, strict=True):
        assert sample.words is not None
        change = np.abs(decode(sample.image, "x").astype(int) - decode(without_letters.image, "x")).max(-1)
        anywhere = np.zeros((128, 128), bool)
        for word in sample.words:
            anywhere |= inside(word, (128, 128), grow=1.0)
        if "sign" in sample.captions[0]:  # letters directly on the ground may have a shadow
            assert change[~anywhere].max(initial=0) <= 40  # a slight blur crosses the edge
            assert (change[~anywhere] > 20).mean() < 0.003
        for word in sample.words:
            quad, change_inside = corners(word), change * inside(word, (128, 128), grow=0.0)
            rows, columns = np.nonzero(change_inside > 20)
            assert columns.min() - quad[:, 0].min() < 3.5
            assert quad[:, 0].max() - columns.max() < 4.5
            assert rows.min() - quad[:, 1].min() < 8  # a corner of a tilted word's quad can be empty
            assert quad[:, 1].max() - rows.max() < 9


def test_captions_and_labels_match_the_picture(signs):
    grammar = re.compile(
        r"(an? (?P<board>\w+) sign that says|the text) \"(?P<text>.+)\" in (?P<ink>\w+) letters (on|in front of) .+"
    )
    for sample in signs:
        (caption,) = sample.captions
        match = grammar.fullmatch(caption)
        assert match, caption
        assert match["text"].split() == [word.text for word in sample.words or []]
        assert match["ink"] in grounds.COLOURS
        assert match["board"] is None or match["board"] in grounds.COLOURS
        assert sample.label in LABELS
    assert len({sample.label for sample in signs}) == len(LABELS) - 1
    assert any("in front of" in sample.captions[0] for sample in signs)


def test_letters_have_the_colour_in_the_caption():
    votes = collections.Counter()
    for sample in SyntheticPictures(60, seed=9, word_height=(40.0, 48.0)):
        picture = decode(sample.image, "x").astype(float)
        ink = re.search(r"in (\w+) letters", sample.captions[0])
        assert ink
        mask = np.any([inside(word, (128, 128), -2.0) for word in sample.words or []], axis=0)
        others = [name for name in grounds.COLOURS if name in sample.captions[0].replace(ink[0], "")]
        names = [ink[1], *others]
        distance = [np.linalg.norm(picture[mask] - grounds.COLOURS[name], axis=-1) for name in names]
        nearest = np.argmin(distance, axis=0)
        votes[bool(0.1 < (nearest == 0).mean() < 0.8)] += 1
    assert votes[True] > 50


def test_splits_share_no_word_and_no_typeface():
    train, test = (SyntheticPictures(60, seed=3, split=split) for split in ("train", "test"))
    words = {
        source.split: {word.text.casefold() for sample in source for word in sample.words or []}
        for source in (train, test)
    }
    assert not words["train"] & words["test"]
    assert all(in_split(word, "test") for word in words["test"])
    assert not {face.family for face in train.typefaces} & {face.family for face in test.typefaces}


def test_paragraph_words_match_caption_and_boxes(paragraphs):
    for sample in paragraphs:
        words = sample.words or []
        text = " ".join(word.text for word in words)
        assert 100 <= len(text) <= 300
        assert f'reads: "{text}"' in sample.captions[0]
        assert sample.label == "paragraph"
        picture = decode(sample.image, "x").astype(int)
        paper = picture[0, 0]
        outside = ~np.any([inside(word, (256, 256), 2.0) for word in words], axis=0)
        assert np.abs(picture - paper)[outside].max() < 48  # JPEG's ringing at most: the ground is blank
        for word in words:
            x0, y0, x1, y1 = (int(edge) for edge in word.box)
            assert np.abs(picture - paper)[y0:y1, x0:x1].max() > 60, word


def test_custom_size_word_height_and_grounds(tmp_path):
    (tmp_path / "p.png").write_bytes(encode(np.full((40, 40, 3), 90, np.uint8)))
    pictures = SyntheticPictures(30, size=200, word_height=(16.0, 20.0), grounds=str(tmp_path))
    assert pictures[0].width == 200
    assert any("a photograph" in sample.captions[0] for sample in pictures)
    assert all(13 < word.height < 27 for sample in pictures for word in sample.words or [])


def test_works_without_any_font_package(monkeypatch):
    monkeypatch.setattr(fonts, "entry_points", lambda group: ())
    assert all(sample.words for sample in SyntheticPictures(5))


def test_rejects_words_and_paragraphs_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="word height 50 to 20"):
        SyntheticPictures(1, word_height=(50.0, 20.0))
    with pytest.raises(DataError, match="word height 24 to inf"):
        SyntheticPictures(1, word_height=(24.0, float("inf")))
    with pytest.raises(DataError, match="no words 100 pixels high fit in pictures of 64"):
        SyntheticPictures(1, size=64, word_height=(100.0, 120.0))[0]
    with pytest.raises(DataError, match="a paragraph cannot be read in pictures of 48"):
        SyntheticPictures(1, size=48, paragraphs=True)[0]


def test_synthesize_writes_shards(tmp_path):
    out = str(tmp_path / "s")
    assert synthesize(out, count=25, seed=1, samples_per_shard=10) == 25
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 3
    written = ShardReader(tmp_path / "s")
    for row, sample in enumerate(SyntheticPictures(25, seed=1)):
        assert written[row].image == sample.image
        assert [word.text for word in written[row].words or []] == [word.text for word in sample.words or []]
    for other in ({"count": 1}, {"count": 25, "seed": 2}, {"count": 25, "seed": 1, "word_height": (20.0, 30.0)}):
        with pytest.raises(DataError, match=r"begun with .* name another folder"):
            synthesize(out, samples_per_shard=10, **{"seed": 1, **other})


def test_rejects_photographs_or_typefaces_changed_since_the_run_began(tmp_path):
    own = {"grounds": str(tmp_path), "fonts": str(tmp_path)}
    (tmp_path / "p.png").write_bytes(encode(np.full((40, 40, 3), 90, np.uint8)))
    (tmp_path / "f.ttf").write_bytes(ImageFont.load_default(10).font_bytes)
    for _ in range(2):
        assert synthesize(str(tmp_path / "s"), count=2, **own) == 2
    for file, what in (("sub/g.ttf", "fonts"), ("sub/q.png", "grounds")):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((tmp_path / {"fonts": "f.ttf", "grounds": "p.png"}[what]).read_bytes())
        with pytest.raises(DataError, match=f"begun with {what}_fingerprint"):
            synthesize(str(tmp_path / "s"), count=2, **own)
        (tmp_path / file).unlink()
    with pytest.raises(DataError, match="no paragraphs on photographs"):
        synthesize(str(tmp_path / "t"), count=2, paragraphs=True, grounds=str(tmp_path))


def test_synthesize_resumes_after_the_last_complete_shard(tmp_path, monkeypatch):
    out = tmp_path / "s"
    settings = {"count": 25, "seed": 1, "size": 64, "word_height": (12.0, 24.0), "samples_per_shard": 10}
    rendered, read = [], SyntheticPictures.read

    def killed(self: SyntheticPictures, index: int) -> Sample:
        rendered.append(index)
        if rendered == list(range(15)):
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(SyntheticPictures, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize(str(out), **settings)
    assert synthesize(str(out), **settings) == 25
    assert rendered == [*range(15), *range(10, 25)]
    synthesize(str(tmp_path / "whole"), **settings)
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert file.read_bytes() == (out / file.name).read_bytes()
    assert synthesize(str(out), **settings) == 25
    assert len(rendered) == 30 + 25


@pytest.mark.parametrize(
    "settings", [{"count": 0}, {"seed": -1}, {"size": 0}, {"size": 8001}, {"samples_per_shard": 0}]
)
def test_rejects_numbers_out_of_range(settings, tmp_path):
    with pytest.raises(DataError, match=f"{next(iter(settings))}.* must be"):
        synthesize(str(tmp_path / "out"), **settings)
    assert not (tmp_path / "out").exists()
