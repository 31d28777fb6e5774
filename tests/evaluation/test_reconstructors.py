"""Tokenizers conditioned on captions, and wrong captions: those of other pictures, whatever the batches."""

import dataclasses
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imtok import presets
from imtok.cli import main
from imtok.data.plain_signs import PlainSigns
from imtok.data.readers import open_dataset
from imtok.data.sample import InMemoryDataset, Sample
from imtok.data.synthetic import synthesize
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.meters import CodeMeter, OriginalPicture, ReconstructedPicture
from imtok.evaluation.reconstructors import Reconstruction, TokenizerReconstructor
from imtok.evaluation.wrong_captions import WrongCaptions, wrong_for
from imtok.tokenizers.catalog import build


def test_each_picture_is_given_the_text_of_another_one() -> None:
    captions = [None if caption == "-" else caption for caption in "aab-bc-a"]
    assert wrong_for(captions) == [*"bbabab", "c", "c"]
    assert wrong_for(captions[:2]) == [None] * 2  # there is no other text


def test_pictures_with_the_same_path_are_given_each_other_s_caption() -> None:
    samples = [Sample(image=b"", path="x.png", width=1, height=1, captions=[caption]) for caption in ("cat", "dog")]

    class Set:
        def samples(self) -> list[Sample]:
            return samples

        def prepared(self) -> list[np.ndarray]:
            return []

        def readable(self, paths: object) -> list[str]:
            return []

    wrong = WrongCaptions(TokenizerReconstructor("a", build(presets.get("textok-debug").tokenizer), frozenset()))
    wrong.begin(Set())
    assert wrong.texts_for(samples) == ["dog", "cat"]


def test_wrong_captions_are_compared_with_the_right_ones(tmp_path: Path, hearing: str) -> None:
    synthesize(str(tmp_path / "signs"), count=12, seed=5, size=64, word_height=(12.0, 24.0))
    signs = str(tmp_path / "signs")
    metrics = ["--metrics", "psnr", "--no-checks", "--wrong-captions"]
    assert main(["evaluate", hearing, "--data", signs, "--out", str(tmp_path / "out"), *metrics]) == 0
    found = evaluate(hearing, signs, metrics=["psnr"], checks=False, wrong_captions=True)
    assert list(found.tokenizers) == ["hearing", "hearing, wrong captions"]
    (comparison,) = found.comparisons
    assert (comparison.tokenizer, comparison.baseline) == ("hearing, wrong captions", "hearing")
    assert comparison.difference != 0  # even an untrained tokenizer depends on the caption
    later = evaluate(["jpeg:30", hearing], signs, metrics=["psnr"], checks=False, wrong_captions=True)
    pairs = [(one.tokenizer, one.baseline) for one in later.comparisons]
    assert pairs == [("hearing", "jpeg:30"), ("hearing, wrong captions", "hearing")]  # whichever tokenizer comes first
    labels = {sample.path: sample.label for sample in open_dataset(signs)}  # the only text that it is conditioned on
    right, wrong = ({one.path: one.texts[name] for one in found.examples} for name in found.tokenizers)
    assert right == labels
    assert all(wrong[path] in set(labels.values()) - {right[path]} for path in labels)
    page = html.unescape((tmp_path / "out/report.html").read_text())
    assert all(f"hearing, given “{label}”" in page for label in labels.values())
    assert len({sample.label for sample in open_dataset(signs)}) > 1


def test_reports_if_no_tokenizer_is_conditioned_on_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesize(str(tmp_path / "signs"), count=2, size=64)
    found = evaluate("jpeg:30", str(tmp_path / "signs"), metrics=["psnr"], checks=False, wrong_captions=True)
    assert list(found.tokenizers) == ["jpeg:30"]
    assert "wrong captions: none of the tokenizers is conditioned on captions" in capsys.readouterr().out


def test_pictures_without_captions_are_counted_and_reported(
    tmp_path: Path, hearing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(str(tmp_path / "signs"), count=3, seed=5, size=64, word_height=(12.0, 24.0))
    signs = list(open_dataset(str(tmp_path / "signs")))
    without = [dataclasses.replace(sample, label=None) for sample in signs[1:]]
    evaluate(hearing, {"signs": InMemoryDataset([signs[0], *without])}, metrics=["psnr"], checks=False)
    assert "signs, hearing: is conditioned on captions, and 2 of 3 pictures have none" in capsys.readouterr().out
    evaluate(hearing, {"signs": InMemoryDataset(signs)}, metrics=["psnr"], checks=False)
    assert "is conditioned on captions" not in capsys.readouterr().out


def test_textok_nano_loses_psnr_with_wrong_captions_or_without_text(needs: Callable[[str], Any]) -> None:
    """Right captions against wrong ones and against the counterpart without text, on signs that neither has seen."""
    needs("text_encoder/minilm")
    signs = PlainSigns(48, seed=77, size=64, split="combinations", labels=("shop", "animal", "food"), steady=True)
    reconstructors, data = ["textok-nano", "baseline-nano"], {"known": signs}
    found = evaluate(reconstructors, data, metrics=["psnr"], checks=False, wrong_captions=True)
    comparisons = {one.tokenizer: one for one in found.comparisons}
    assert comparisons["textok-nano, wrong captions"].high < -10
    assert comparisons["baseline-nano"].high < 0
    assert found.score("textok-nano", "known", "psnr").low > 30


def test_caption_bits_are_divided_by_the_number_of_pixels() -> None:
    meter = CodeMeter({"a": (), "b": ()}, {"a": None, "b": "stated"})
    picture = np.zeros((20, 10, 3), dtype=np.uint8)
    sample = Sample(image=b"", path="x", width=10, height=20)
    with_caption = Reconstruction(picture, bits_per_pixel=0.1, caption_bits=40.0)
    reconstructions = {
        name: [ReconstructedPicture(output=output, content=picture, restored=picture)]
        for name, output in (("a", with_caption), ("b", Reconstruction(picture, bits_per_pixel=0.2)))
    }
    originals = [OriginalPicture(row=0, sample=sample, original=picture, prepared=picture, content=picture)]
    meter.add(meter.process(originals, reconstructions), groups=[0])
    found = meter.results("a")
    values = {metric: measured.items.values.tolist() for metric, measured in found.items() if measured.items}
    assert values == {"bits_per_pixel": [0.1], "caption_bits": [40], "bits_per_pixel_with_caption": [0.1 + 40 / 200]}
    assert meter.results("b").keys() == {"bits_per_pixel"}
    assert meter.results("b")["bits_per_pixel"].note == "stated"
