"""Encoding of pictures to token shards: the codes equal the tokenizer's, also after interruptions."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, TenCrop

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.cli import main
from imtok.config import ConfigError, to_dict
from imtok.data.pictures import decode, from_uint8
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError, Sample, TextRegion
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import synthesize
from imtok.data.token_shards import TokenShards
from imtok.tokenizers import encode
from imtok.tokenizers.catalog import hash_of, load
from imtok.tokenizers.encode import crops_of, encode_pictures
from imtok.tokenizers.text import TextConditioner


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "signs"
    synthesize(str(folder), count=21, seed=5, size=64, word_height=(12.0, 24.0))
    return str(folder)


def untrained(folder: Path, preset: str) -> str:
    torch.manual_seed(0)
    run = RunFolder(folder / preset)
    run.write_config(to_dict(presets.get(preset)))
    run.write_model(presets.create_tokenizer(preset).weights())
    return str(run.path)


def test_shards_hold_tokenizer_codes_and_annotations(signs: str, tmp_path: Path) -> None:
    run = untrained(tmp_path, "insighttok-debug")
    assert main(["encode", run, signs, str(tmp_path / "codes"), "--resolution", "64", "--batch-size", "4"]) == 0
    shards, source, tokenizer = TokenShards(tmp_path / "codes"), open_dataset(signs), load(run)
    manifest = shards.manifest
    assert (len(shards), manifest.pictures, shards.complete) == (21, 21, True)
    assert (manifest.codebook_sizes, manifest.tokens, manifest.grid_size) == ((64,), 64, (8, 8))
    assert manifest.sha256 == hash_of(run)
    as_trained = encode_pictures(run, signs, tmp_path / "as-trained")
    assert as_trained.manifest.resolution == RunFolder(run).read_config()["data"]["crop"]["resolution"] == 64
    for index in (0, 7, 20):
        sample, row = source[index], shards[index]
        with torch.no_grad():
            expected = tokenizer.encode(from_uint8(decode(sample.image, sample.path))[None]).codes
        assert expected is not None
        assert np.array_equal(row.values, expected.numpy())
        assert (row.path, row.label, row.captions) == (sample.path, sample.label, sample.captions)
    assert shards.labels() == sorted({sample.label for sample in source if sample.label})
    with pytest.raises(IndexError):
        shards[21]


def test_shards_hold_latents_of_continuous_tokenizer(signs: str, tmp_path: Path) -> None:
    run = untrained(tmp_path, "baseline-nano")
    shards = encode_pictures(run, signs, tmp_path / "latents", 64)
    manifest = shards.manifest
    assert (manifest.codebook_sizes, manifest.branch_dims, manifest.tokens) == ((), (8,), 2)
    assert not manifest.tokens_on_grid
    sample = open_dataset(signs)[3]
    with torch.no_grad():
        expected = load(run).encode(from_uint8(decode(sample.image, sample.path))[None]).latents
    assert np.allclose(shards[3].values.astype(np.float32), expected.numpy(), rtol=2e-3, atol=1e-4)


@torch.no_grad()
def test_every_crop_is_conditioned_on_its_picture_class(tmp_path: Path, hearing: str) -> None:
    synthesize(str(tmp_path / "plain"), count=6, seed=5, size=64, word_height=(12.0, 24.0))
    samples = list(open_dataset(tmp_path / "plain"))
    annotated = [
        dataclasses.replace(sample, words=sample.words[: row % 2], captions=["a", "b"])
        for row, sample in enumerate(samples)
    ]
    assert len({sample.label for sample in annotated}) > 1
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for sample in annotated:
            writer.write(sample)
    shards, tokenizer = encode_pictures(hearing, tmp_path / "signs", tmp_path / "latents", 64, "ten"), load(hearing)
    assert tokenizer.text_config is not None
    text_conditioner = TextConditioner(tokenizer.text_config)
    assert [len(shards[row].values) for row in range(6)] == [10, 5] * 3
    for row, sample in enumerate(annotated):
        crops = [crop.pixels(decode(sample.image, sample.path)) for crop in crops_of(sample, "ten", 64)]
        images = from_uint8(np.stack(crops))
        expected = tokenizer.encode(images, text_conditioner.encode([sample.label] * len(crops))).latents
        stored = torch.from_numpy(shards[row].values.astype(np.float32))
        torch.testing.assert_close(stored, expected, rtol=2e-3, atol=1e-3)
        assert not torch.allclose(expected, tokenizer.encode(images).latents, atol=1e-2)
        assert shards[row].captions == ["a", "b"]  # it is conditioned on classes alone


def test_number_of_pictures_without_text_is_reported(
    tmp_path: Path, hearing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(str(tmp_path / "signs")) as writer:
        for row, sample in enumerate(open_dataset(_three_signs(tmp_path))):
            writer.write(dataclasses.replace(sample, label=sample.label if row else None))
    encode_pictures(hearing, tmp_path / "signs", tmp_path / "latents", 64)
    assert "is conditioned on captions or classes, and 1 pictures have none" in capsys.readouterr().out


def test_resume_repeats_only_the_interrupted_part(signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(tmp_path, "insighttok-debug")
    monkeypatch.setattr(encode, "PICTURES_PER_PART", 8)
    encode_pictures(run, signs, tmp_path / "whole", 64)
    original_encode, calls = encode._encode, []

    def interrupted_encode(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original_encode(*arguments)

    monkeypatch.setattr(encode, "_encode", interrupted_encode)
    with pytest.raises(KeyboardInterrupt):
        encode_pictures(run, signs, tmp_path / "cut", 64, batch_size=4)
    assert len(TokenShards(tmp_path / "cut")) == 8
    encode_pictures(run, signs, tmp_path / "cut", 64, batch_size=4)
    assert len(calls) == 4 + 2 + 2  # the second part again, then the third
    for index in range(21):
        assert np.array_equal(
            TokenShards(tmp_path / "cut")[index].values, TokenShards(tmp_path / "whole")[index].values
        )


def test_ten_crops_equal_torchvision_and_words_are_not_mirrored(tmp_path: Path) -> None:
    picture = np.arange(110 * 132 * 3, dtype=np.uint32).reshape(110, 132, 3).astype(np.uint8)
    fields = {"image": b"", "path": "a", "width": 132, "height": 110}
    plain = crops_of(Sample(**fields, words=[]), "ten", 50)
    assert len(plain) == 10
    assert [crop.side for crop in plain] == pytest.approx([100.0] * 10)
    offsets = [offset for crop in plain[:5] for offset in (crop.left, crop.top)]
    assert offsets == pytest.approx([11, 0, 21, 0, 11, 10, 21, 10, 16, 5])
    theirs = TenCrop(100)(CenterCrop(110)(Image.fromarray(picture)))  # torchvision returns them in another order
    ours = [dataclasses.replace(crop, resolution=100).pixels(picture) for crop in plain]
    assert {crop.tobytes() for crop in ours} == {other.tobytes() for other in theirs}
    assert np.array_equal(plain[7].pixels(picture), plain[2].pixels(picture)[:, ::-1])
    words = [TextRegion(box=(0.0, 0.0, 9.0, 9.0), text="a")]
    assert len(crops_of(Sample(**fields, words=words), "ten", 50)) == 5
    (middle,) = crops_of(Sample(**fields), "centre", 50)
    assert (middle.left, middle.top, middle.side) == (11, 0, 110)


def test_unreadable_picture_gets_row_without_crops(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "data")) as writer:
        for index, sample in enumerate(open_dataset(_three_signs(tmp_path))):
            writer.write(Sample(image=b"broken", path="b", width=9, height=9) if index == 1 else sample)
    run = untrained(tmp_path, "insighttok-debug")
    shards = encode_pictures(run, str(tmp_path / "data"), tmp_path / "codes", 64, "ten")
    assert [len(shards[index].values) for index in range(3)] == [5, 0, 5]


def test_rejects_changed_settings_changed_source_and_bad_resolution(signs: str, tmp_path: Path) -> None:
    run = untrained(tmp_path, "insighttok-debug")
    encode_pictures(run, signs, tmp_path / "codes", 64)
    with pytest.raises(DataError, match="begun with resolution = 64, now it is 32"):
        encode_pictures(run, signs, tmp_path / "codes", 32)
    few = shutil.copytree(signs, tmp_path / "few")
    encode_pictures(run, few, tmp_path / "few codes", 64)
    shutil.rmtree(few)
    synthesize(str(few), count=21, seed=6, size=64, word_height=(12.0, 24.0))
    with pytest.raises(DataError, match="few codes: begun with other pictures, or other files of them"):
        encode_pictures(run, few, tmp_path / "few codes", 64)
    with pytest.raises(ConfigError, match="60 px is no multiple of its patches of 8 px"):
        encode_pictures(run, signs, tmp_path / "other", 60)
    with pytest.raises(DataError, match="imtok encode makes them"):
        TokenShards(tmp_path)


def _three_signs(folder: Path) -> str:
    synthesize(str(folder / "few"), count=3, seed=5, size=64, word_height=(12.0, 24.0))
    return str(folder / "few")


def test_rejects_unreadable_source_zero_batch_size_and_missing_part(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(tmp_path, "insighttok-debug")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.png").write_text("hello")
    with pytest.raises(DataError, match="bad: none of the pictures can be read"):
        encode_pictures(run, tmp_path / "bad", tmp_path / "none", 64)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        encode_pictures(run, signs, tmp_path / "codes", 64, batch_size=0)
    monkeypatch.setattr(encode, "PICTURES_PER_PART", 8)
    encode_pictures(run, signs, tmp_path / "codes", 64)
    last = (tmp_path / "codes/part-00002.arrow").read_bytes()
    (tmp_path / "codes/part-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"part-00001\.arrow is missing; delete the parts behind it"):
        encode_pictures(run, signs, tmp_path / "codes", 64)
    assert (tmp_path / "codes/part-00002.arrow").read_bytes() == last


def test_rejects_weights_that_change_during_loading(
    signs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original_load = untrained(tmp_path, "insighttok-debug"), encode.load

    def load_and_change_weights(name: str, *rest: object) -> object:
        model = original_load(name, *rest)
        folder = RunFolder(name)
        folder.write_model({key: value + 1 for key, value in folder.read_model().items()})
        return model

    monkeypatch.setattr(encode, "load", load_and_change_weights)
    with pytest.raises(DataError, match="has been saved anew meanwhile"):
        encode_pictures(run, signs, tmp_path / "codes", 64)
