"""Stored text features: the encoder's outputs, once for each caption, even after interruptions."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from imtok import pretrained
from imtok.cli import main
from imtok.config import ConfigError
from imtok.data import text_features
from imtok.data.sample import DataError
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.text_features import TextFeatures, embed, stored_features
from imtok.pretrained.language import TextEncoder


class Letters(TextEncoder):
    """Stand-in for a text encoder: one token per letter, whose states are the letter's code and its position."""

    name, sha256 = "text_encoder/letters", "abc"

    def __init__(self) -> None:
        super().__init__(None, None, 2)
        self.read: list[str] = []

    def check_length(self, max_tokens: int) -> None:
        """Accept any length."""

    def length(self, text: str) -> int:
        return len(text)

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


def test_every_caption_is_encoded_once_and_stored(shards: str, letters: Letters) -> None:
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


def test_second_run_encodes_only_missing_captions(
    shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_each_maximum_length_and_encoder_hash_has_its_own_folder(
    shards: str, letters: Letters, capsys: pytest.CaptureFixture[str]
) -> None:
    long = TextFeatures(embed(shards, "text_encoder/letters"))
    assert "are cut" not in capsys.readouterr().out
    short = TextFeatures(embed(shards, "text_encoder/letters", max_tokens=5))
    count = len(set(captions(shards)))
    assert f"{count} of {count} captions are longer than 5 tokens, and are cut" in capsys.readouterr().out
    caption = captions(shards)[0]
    assert len(long.states(caption)) > len(short.states(caption)) == 5
    letters.read.clear()
    letters.sha256 = "def"
    other = TextFeatures(embed(shards, "text_encoder/letters"))
    assert sorted(letters.read) == sorted(captions(shards))
    assert len({long.folder, short.folder, other.folder}) == 3
    assert {one.folder for one in stored_features(shards, "text_encoder/letters", 128)} == {long.folder, other.folder}


def test_missing_part_is_rewritten_and_the_others_are_kept(
    shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_features, "CAPTIONS_PER_PART", 8)
    folder = Path(embed(shards, "text_encoder/letters"))
    (folder / "part-00000.arrow").unlink()
    kept = (folder / "part-00001.arrow").read_bytes()
    stored = TextFeatures(embed(shards, "text_encoder/letters"))
    assert (folder / "part-00001.arrow").read_bytes() == kept
    assert all(caption in stored for caption in captions(shards))


def test_part_with_states_too_large_for_float16_is_stored_in_float32(
    shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_features, "CAPTIONS_PER_PART", 8)
    encode, large = letters.encode, captions(shards)[9]

    def encode_large(texts: Sequence[str], max_tokens: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
        states, mask = encode(texts, max_tokens)
        return torch.where(torch.tensor([text == large for text in texts])[:, None, None], states * 1e6, states), mask

    monkeypatch.setattr(letters, "encode", encode_large)
    stored = TextFeatures(embed(shards, "text_encoder/letters"))
    kinds = [pa.ipc.open_file(part).schema.field("states").type.value_type for part in stored.parts[:3]]
    assert kinds == [pa.float16(), pa.float32(), pa.float16()]
    for caption in captions(shards):
        states, mask = encode_large([caption])
        assert np.array_equal(stored.states(caption), states[mask].numpy())
    monkeypatch.setattr(letters, "encode", lambda texts, most: (encode(texts, most)[0] / 0, encode(texts, most)[1]))
    with pytest.raises(DataError, match="are not finite"):
        embed(shards, "text_encoder/letters", max_tokens=5)


def test_half_precision_loses_little(needs) -> None:
    """fp16 loses about .02 % of MiniLM's states, and bf16, whose mantissa is shorter, eight times as much."""
    network = needs("text_encoder/minilm")
    states, mask = network.encode(["a red sign that says OPEN", "two dogs run along the beach at sunset"])
    kept = states[mask]
    scale = kept.square().mean().sqrt()
    losses = [
        float((kept.to(kind).float() - kept).square().mean().sqrt() / scale) for kind in (torch.half, torch.bfloat16)
    ]
    assert losses[0] < 3e-4 < 1e-3 < losses[1]


def test_number_of_open_part_files_is_limited(shards: str, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_features, "CAPTIONS_PER_PART", 1)
    monkeypatch.setattr(text_features, "OPEN_FILES", 4)
    embed(shards, "text_encoder/letters")
    before = len(os.listdir("/proc/self/fd"))
    stored = TextFeatures(embed(shards, "text_encoder/letters"))
    assert len(stored.parts) > 20
    for caption in captions(shards):
        assert len(stored.states(caption)) == len(caption[:128])
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_rejects_missing_source_bad_batch_size_and_broken_part(tmp_path: Path, letters: Letters, shards: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        embed(str(tmp_path / "typo"), "text_encoder/letters")
    assert not (tmp_path / "typo").exists()
    with pytest.raises(ConfigError, match="batch_size = -1"):
        embed(shards, "text_encoder/letters", batch_size=-1)
    part = Path(embed(shards, "text_encoder/letters")) / "part-00000.arrow"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"part-00000\.arrow: not a readable Arrow file .*; delete it"):
        embed(shards, "text_encoder/letters")


def test_cli_reports_unsuitable_or_missing_encoders_and_sources(
    tmp_path: Path, needs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("text_encoder/minilm")
    needs("perceptual/vgg16")
    assert main(["embed", str(tmp_path), "--encoder", "perceptual/vgg16"]) == 2
    assert "perceptual/vgg16: reads no text" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "nowhere"), "--encoder", "text_encoder/minilm"]) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["embed", str(tmp_path), "--encoder", "text_encoder/t5_xl"]) == 2
    errors = capsys.readouterr().err
    assert "text_encoder/t5_xl is missing: T5 xl's encoder" in errors
    assert len(errors.splitlines()) == 2
