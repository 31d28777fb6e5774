"""Stored text features: what the encoder says, once for each caption, whatever happens in between."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from imtok import pretrained
from imtok.cli import main
from imtok.data import text_features
from imtok.data.sample import DataError
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.text_features import TextFeatures, embed
from imtok.pretrained.language import TextEncoder


class Letters(TextEncoder):
    """Stands in for a text encoder: a token for each letter, whose states are its code and its place."""

    name, sha256 = "text_encoder/letters", "abc"

    def __init__(self) -> None:
        super().__init__(None, None, 2)
        self.read: list[str] = []

    def check_length(self, max_tokens: int) -> None:
        """Any will do."""

    def encode(self, texts: Sequence[str], max_tokens: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += texts
        cut = [text[:max_tokens] for text in texts]
        states = torch.full((len(cut), max(map(len, cut)), 2), 7.0)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, text in enumerate(cut):
            states[row, : len(text), 0] = torch.tensor([float(ord(c) % 64) for c in text])
            states[row, : len(text), 1] = torch.arange(len(text))
            mask[row, : len(text)] = True
        return states, mask


@pytest.fixture
def shards(tmp_path: Path) -> str:
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for sample in SyntheticPictures(25, size=48, word_height=(10.0, 20.0)):
            writer.write(sample)
    return str(tmp_path / "signs")


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    network = Letters()
    monkeypatch.setattr(pretrained, "load", lambda name: network)
    return network


def captions(shards: str) -> list[str]:
    return list(text_features.distinct_captions(shards))


def test_every_caption_is_read_once_and_comes_back(shards: str, letters: Letters) -> None:
    stored = TextFeatures(embed(shards, "text_encoder/letters", max_tokens=20, batch_size=4))
    assert sorted(letters.read) == sorted(captions(shards))
    assert len(stored) == len(captions(shards)) > 20
    for caption in captions(shards):
        assert caption in stored
        states, mask = letters.encode([caption], 20)
        assert np.array_equal(stored.states(caption), states[mask].numpy())
    assert "something else" not in stored
    with pytest.raises(KeyError):
        stored.states("something else")


def test_a_second_run_reads_only_what_is_new(shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_features, "CAPTIONS_PER_PART", 8)
    written = text_features._write

    def stop_at_the_second(path: str, *others: object) -> None:
        if path.endswith("00001.arrow"):
            raise KeyboardInterrupt
        written(path, *others)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(text_features, "_write", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed(shards, "text_encoder/letters")
    monkeypatch.setattr(text_features, "_write", written)
    letters.read.clear()
    stored = TextFeatures(embed(shards, "text_encoder/letters"))
    assert sorted(letters.read) == sorted(captions(shards)[8:])
    assert all(caption in stored for caption in captions(shards))
    letters.read.clear()
    embed(shards, "text_encoder/letters")
    assert letters.read == []


def test_each_length_has_a_folder_and_other_weights_are_refused(shards: str, letters: Letters) -> None:
    long = TextFeatures(embed(shards, "text_encoder/letters"))
    short = TextFeatures(embed(shards, "text_encoder/letters", max_tokens=5))
    caption = captions(shards)[0]
    assert len(long.states(caption)) > len(short.states(caption)) == 5
    letters.sha256 = "def"
    with pytest.raises(DataError, match="begun with other weights of the encoder"):
        embed(shards, "text_encoder/letters")


def test_a_lost_part_is_made_again_without_touching_the_others(
    shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_features, "CAPTIONS_PER_PART", 8)
    folder = Path(embed(shards, "text_encoder/letters"))
    (folder / "part-00000.arrow").unlink()
    kept = (folder / "part-00001.arrow").read_bytes()
    stored = TextFeatures(embed(shards, "text_encoder/letters"))
    assert (folder / "part-00001.arrow").read_bytes() == kept
    assert all(caption in stored for caption in captions(shards))


def test_states_too_large_for_half_precision_are_an_error(
    shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = letters.encode
    monkeypatch.setattr(letters, "encode", lambda *arguments: (encode(*arguments)[0] * 1e6, encode(*arguments)[1]))
    with pytest.raises(DataError, match="too large for fp16"):
        embed(shards, "text_encoder/letters")


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, needs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("text_encoder/minilm")
    needs("perceptual/vgg16")
    assert main(["embed", str(tmp_path), "--encoder", "perceptual/vgg16"]) == 2
    assert "perceptual/vgg16: reads no text" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "nowhere"), "--encoder", "text_encoder/minilm"]) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["embed", str(tmp_path), "--encoder", "text_encoder/t5_xl"]) == 2
    said = capsys.readouterr().err
    assert "text_encoder/t5_xl is missing: T5 xl's encoder" in said
    assert len(said.splitlines()) == 2
