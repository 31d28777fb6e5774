"""The generators shipped with imtok meet the claims of their model cards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imtok
from imtok import pretrained
from imtok.checkpoints import shipped_runs
from imtok.cli import main
from imtok.data.vocabulary import words_by_label
from imtok.evaluation.rendered import read_picture

PROMPTS = {"OPEN": "a red sign that says OPEN", "GULL": "a blue sign that says GULL"}


def test_weights_of_each_generator_take_8_mb_at_most() -> None:
    folders = shipped_runs("generator").values()
    assert folders
    for folder in folders:
        assert (folder / "model.safetensors").stat().st_size <= 8e6


@pytest.fixture
def judges(needs: Callable[[str], Any]) -> list[Any]:
    """A text detector and a text recognizer."""
    for name in ("text_encoder/minilm", "text_detector/ppocrv6", "text_judge/easyocr"):
        needs(name)
    return [pretrained.load(name) for name in ("text_detector/ppocrv6", "text_judge/easyocr")]


def test_word_belongs_to_the_requested_class(tmp_path: Path, judges: list[Any]) -> None:
    """Holds for most pictures: if the latents encode another word than the decoder's caption, letters are mixed."""
    assert main(["generate", "dit-nano", "--labels", "animal", "--count", "12", "--out", str(tmp_path)]) == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    animals = {word.upper() for word in words_by_label()["animal"]}
    assert len([picture for picture in pictures if read_picture(*judges, picture).upper() in animals]) >= 6


def test_picture_shows_the_word_and_colour_of_the_prompt(tmp_path: Path, judges: list[Any]) -> None:
    assert main(["generate", "dit-t2i-nano", "--prompts", *PROMPTS.values(), "--out", str(tmp_path)]) == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    assert [read_picture(*judges, picture) for picture in pictures] == list(PROMPTS)
    red, blue = (picture[:8].mean((0, 1)) for picture in pictures)
    assert (red.argmax(), blue.argmax()) == (0, 2)


def test_far_spells_the_word_that_is_its_class(tmp_path: Path, judges: list[Any]) -> None:
    """Holds for most words, apart from their case."""
    words = imtok.load_generator("far-nano").generator.config.classes[::10]
    assert main(["generate", "far-nano", "--labels", *words, "--out", str(tmp_path)]) == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    found = [read_picture(*judges, picture).upper() for picture in pictures]
    assert sum(read == word for read, word in zip(found, words, strict=True)) >= 5


def test_overflowing_guidance_is_reported_and_writes_no_picture(tmp_path: Path, needs, capsys) -> None:
    needs("text_encoder/minilm")
    argv = ["generate", "dit-nano", "--labels", "animal", "--num-inference-steps", "2", "--guidance-scale", "1e38"]
    assert main([*argv, "--out", str(tmp_path)]) == 2
    assert "guidance is too strong" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_insightar_spells_the_word_of_the_prompt(tmp_path: Path, judges: list[Any]) -> None:
    argv = ["generate", "insightar-nano", "--prompts", PROMPTS["OPEN"], "--count", "10", "--out", str(tmp_path)]
    assert main(argv) == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    assert [read_picture(*judges, picture) for picture in pictures].count("OPEN") >= 7
    assert {int(picture[:8].mean((0, 1)).argmax()) for picture in pictures} == {0}  # all are red
