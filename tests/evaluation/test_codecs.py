"""Codecs at a target rate, compared with brute force over all qualities, and as reconstructors of an evaluation."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from imtok.config import ConfigError
from imtok.data.pictures import encode
from imtok.evaluation.codecs import CODECS, nearest_quality, read_setting
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.reconstructors import CodecReconstructor, FolderReconstructor, open_reconstructor


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    coffee = data.coffee()
    return [np.ascontiguousarray(coffee[y : y + 64, x : x + 96]) for y, x in ((0, 0), (100, 250), (230, 120))]


@pytest.fixture(scope="module")
def folder(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "coffee"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        (folder / f"{index}.png").write_bytes(encode(picture))
    return folder


def rate_of(picture: np.ndarray, name: str, quality: int) -> float:
    """Return the bits per pixel of a file written by Pillow directly."""
    buffer = io.BytesIO()
    options = {"jpeg": {"optimize": True}, "webp": {"method": 6}}[name]
    Image.fromarray(picture).save(buffer, name, quality=quality, **options)
    return len(buffer.getvalue()) * 8 / (picture.shape[0] * picture.shape[1])


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_nearest_quality_matches_brute_force(name: str, pictures: list[np.ndarray]) -> None:
    qualities = range(1, 96) if name == "jpeg" else range(101)
    rates = {quality: np.mean([rate_of(picture, name, quality) for picture in pictures]) for quality in qualities}
    for target in (0.01, 0.6, 1.1, 1.5, 2.2, 50.0):
        quality, reached = nearest_quality(CODECS[name], target, lambda: iter(pictures))
        assert abs(reached - target) == pytest.approx(min(abs(rate - target) for rate in rates.values()))
        assert reached == pytest.approx(rates[quality])


def test_codecs_are_scored_at_the_rate_of_their_files(folder: Path, pictures: list[np.ndarray]) -> None:
    metrics = ["psnr", "bits_per_pixel"]
    found = evaluate(["jpeg:30", "webp@0.01", "jpeg@1.2"], folder, metrics=metrics, checks=False)
    rates = [rate_of(picture, "jpeg", 30) for picture in pictures]
    assert found.score("jpeg:30", "coffee", "bits_per_pixel").value == pytest.approx(np.mean(rates))
    lowest = found.score("webp@0.01", "coffee", "bits_per_pixel")
    assert lowest.value == pytest.approx(np.mean([rate_of(picture, "webp", 0) for picture in pictures]))
    assert "quality 0, the lowest there is, for 0.01 bits per pixel" in (lowest.note or "")
    reached = found.score("jpeg@1.2", "coffee", "bits_per_pixel")
    assert f"{reached.value:.4f} are reached" in (reached.note or "")
    assert not any(result.is_check for result in found.results)
    as_check = evaluate("jpeg:95", folder, metrics=metrics)
    assert found.score("jpeg:30", "coffee", "psnr").value == pytest.approx(
        as_check.score("jpeg-30", "coffee", "psnr").value
    )


def test_folder_name_can_be_followed_by_its_rate(folder: Path, tmp_path: Path) -> None:
    reconstructor = open_reconstructor(f"{folder}@0.125")
    assert isinstance(reconstructor, FolderReconstructor)
    found = evaluate(f"{folder}@0.125", folder, metrics=["bits_per_pixel"], checks=False)
    score = found.score(str(folder), "coffee", "bits_per_pixel")
    assert (score.value, score.note) == (0.125, "as stated on the command line")
    folder_with_at_sign = tmp_path / "drawn@2"
    folder_with_at_sign.mkdir()
    (folder_with_at_sign / "a.png").write_bytes(encode(np.zeros((20, 20, 3), dtype=np.uint8)))
    assert open_reconstructor(str(folder_with_at_sign)).name == str(folder_with_at_sign)


@pytest.mark.parametrize("name", ["jpeg:0", "jpeg:96", "webp:101", "webp:3.5", "jpeg@0", "webp@.0"])
def test_rejects_codec_settings_out_of_range_with_a_one_line_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: the ") as error:
        read_setting(name)
    assert "\n" not in str(error.value)


def test_only_codec_names_with_a_setting_are_parsed_as_codecs() -> None:
    assert isinstance(open_reconstructor("webp:0"), CodecReconstructor)
    assert [read_setting(name) for name in ("jpeg-30", "jpeg", "png:3", "runs/jpeg:30", "jpeg:")] == [None] * 5
