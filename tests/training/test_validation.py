"""Scores and previews during training, for a tokenizer whose outputs are known."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imtok import presets
from imtok.config import ConfigError
from imtok.data.pictures import decode, encode
from imtok.data.sample import InMemoryDataset, Sample, TextRegion
from imtok.tokenizers.base import Encoding, Tokenizer
from imtok.tokenizers.text import Text
from imtok.training.data_modules import ImageDataModule, evaluation_batch_size
from imtok.training.run import Phase
from imtok.training.validation import Validation

SIDE = 64


class Brighter(Tokenizer):
    """Uses two of sixteen codes, and reconstructs a picture exactly, but brighter by 0.1."""

    codebook_sizes = (16,)
    downsample_factor = SIDE

    def encode_unquantized(self, images: Tensor, text: Text | None = None) -> Tensor:
        return images.flatten(2).mT

    def encode(self, images: Tensor, text: Text | None = None) -> Encoding:
        codes = torch.arange(len(images) * SIDE**2).view(len(images), -1, 1) % 2
        return Encoding(latents=self.encode_unquantized(images), codes=codes, grid_size=(1, 1), image_size=(SIDE, SIDE))

    def decode(self, latents: Tensor, text: Text | None = None, grid_size: tuple[int, int] | None = None) -> Tensor:
        return latents.mT.unflatten(2, (SIDE, SIDE)) + 0.1


def pictures(count: int) -> InMemoryDataset:
    """Random pictures of the crops' size, with values far from black and white."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(60, 190, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]
    return InMemoryDataset(
        Sample(image=encode(array), path=str(index), width=SIDE, height=SIDE) for index, array in enumerate(arrays)
    )


@pytest.fixture
def validation() -> Validation:
    config = presets.get("insighttok-debug")
    training = dataclasses.replace(config.training, evaluation_pictures=5, micro_batch_size=2)
    return Validation(dataclasses.replace(config, training=training), pictures(6), held_out=True)


def test_rejects_held_out_pictures_too_small_to_be_scored() -> None:
    config = presets.get("insighttok-debug")
    small = dataclasses.replace(config.data, crop=dataclasses.replace(config.data.crop, resolution=8))
    with pytest.raises(ConfigError, match="pictures of 8 px cannot be scored; SSIM needs 16 or more"):
        Validation(dataclasses.replace(config, data=small), pictures(6), held_out=True)
    Validation(dataclasses.replace(config, data=small), pictures(6), held_out=False)


def test_scores_equal_the_known_values(validation: Validation) -> None:
    scores = validation.evaluate(Brighter(), torch.device("cpu"))
    assert scores["psnr"] == pytest.approx(20 * np.log10(255 / 13), abs=1e-3)
    assert 0.95 < scores["ssim"] < 1
    assert scores["codebook_usage_0"] == 2 / 16
    assert scores["codebook_perplexity_0"] == pytest.approx(2)


def test_a_preview_shows_originals_above_their_reconstructions(validation: Validation, tmp_path: Path) -> None:
    file = validation.preview(Brighter(), tmp_path, 7, torch.device("cpu"))
    assert file.name == "step-00000007.png"
    sheet = decode(file.read_bytes()).astype(int)
    originals = [decode(sample.image).astype(int) for sample in pictures(6)]
    assert sheet.shape == (2 * SIDE, 6 * SIDE, 3)
    assert np.array_equal(sheet[:SIDE], np.concatenate(originals, axis=1))
    assert set(np.unique(sheet[SIDE:] - sheet[:SIDE])) == {13}  # .1 of [-1, 1], rounded


def test_evaluation_batches_are_no_larger_than_training_batches() -> None:
    training = presets.get("insighttok-debug").training
    for settings, expected in (
        ({"global_batch_size": 512, "micro_batch_size": None}, 32),
        ({"global_batch_size": 512, "micro_batch_size": 8}, 8),
        ({"global_batch_size": 6, "micro_batch_size": None}, 6),
    ):
        assert evaluation_batch_size(dataclasses.replace(training, **settings)) == expected


def test_batches_have_the_region_share_of_their_phase() -> None:
    word = TextRegion(box=(8.0, 8.0, 40.0, 24.0), text="a")
    plain = list(pictures(10))
    source = InMemoryDataset(
        [dataclasses.replace(sample, words=[word] if row < 2 else []) for row, sample in enumerate(plain)]
    )
    data_module = ImageDataModule(source, presets.get("insighttok-debug").data)
    for share, expected in ((0.5, 4), (0.0, 0), (1.0, 8)):
        loader: Any = data_module.loader(Phase(name="x", steps=1, region_share=share), 8, seed=0)
        assert sum(path in ("0", "1") for path in loader.batch(0).paths) == expected
