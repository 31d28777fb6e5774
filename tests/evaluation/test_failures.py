"""What cannot be measured is left out, said in a line and written down, and nothing else changes."""

import html
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imtok.cli import main
from imtok.config import ConfigError
from imtok.data.pictures import decode, encode
from imtok.data.readers import FolderDataset
from imtok.data.sample import Sample
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.meters import PixelMeter

CHECKPOINT = Path(__file__).parents[1] / "tokenizers/reference/insighttok_tiny.pt"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets, a folder that lacks a picture of the first one, a checkpoint of NaN, and what cannot be opened."""
    rng = np.random.default_rng(0)
    for folder in ("photos", "more", "drawn"):
        (tmp_path / folder).mkdir()
    for index in range(24):
        pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32)))
        (tmp_path / ("photos", "more")[index % 2] / f"{index:02}.png").write_bytes(encode(pixels))
        (tmp_path / f"drawn/{index:02}.png").write_bytes(encode(decode(encode(pixels, "JPEG", quality=40))))
    (tmp_path / "drawn/20.png").unlink()
    weights = torch.load(CHECKPOINT, weights_only=True)["model"]
    torch.save({"model": {name: tensor * torch.nan for name, tensor in weights.items()}}, tmp_path / "nan.pt")
    for name in ("broken.pt", "torn.npz"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    monkeypatch.setattr("imtok.evaluation.sets._BATCH", 4)  # so that it fails late
    monkeypatch.setattr("imtok.evaluation.statistics.RESAMPLES", 200)  # intervals are tested elsewhere
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_own_weights")
def test_the_rest_is_measured_as_if_nothing_had_failed(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources, wanted = ["jpeg:30", "drawn", "broken.pt", "nan.pt", "webp:30"], ["--metrics", "psnr", "fid"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *sources, "--data", "photos", "torn.npz", "more", "--out", "out", *wanted, "--no-checks"])
    assert ended.value.code == 2
    written = json.loads((places / "out/metrics.json").read_text())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("without ")]
    reasons = [
        ("torn.npz", {"data": "torn.npz"}, "torn.npz: "),
        ("broken.pt", {"tokenizer": "broken.pt"}, "broken.pt: "),
        ("fid", {"metric": "fid"}, "vision/inception is missing"),
        ("drawn on photos", {"tokenizer": "drawn", "data": "photos"}, "drawn: holds no reconstruction of 20.png;"),
        ("nan.pt on photos", {"tokenizer": "nan.pt", "data": "photos"}, "nan.pt: outputs NaN or infinity for 00.png"),
        ("nan.pt on more", {"tokenizer": "nan.pt", "data": "more"}, "nan.pt: outputs NaN or infinity for 01.png"),
    ]
    page = html.unescape((places / "out/report.html").read_text())
    for line, failure, (what, names, why) in zip(lines, written["failed"], reasons, strict=True):
        assert failure == names | {"why": failure["why"]}
        assert failure["why"].startswith(why)
        assert line == f"without {what}: {failure['why']}"
        assert line in page

    measured = [(result["data"], result["tokenizer"]) for result in written["results"]]
    assert measured == [
        *(("photos", name) for name in ("jpeg:30", "webp:30")),
        *(("more", n) for n in (*sources[:2], "webp:30")),
    ]
    evaluate(["jpeg:30", "webp:30"], "photos", "alone", metrics=["psnr"], checks=False)
    alone = json.loads((places / "alone/metrics.json").read_text())
    assert written["results"][:2] == alone["results"]
    assert [one for one in written["comparisons"] if one["data"] == "photos"] == alone["comparisons"]
    items = [(places / folder / "items.jsonl").read_text().splitlines() for folder in ("out", "alone")]
    assert items[0][:12] == items[1]


def test_what_was_found_is_written_before_another_set_ends_all(
    places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = FolderDataset.read

    def read_until(self: FolderDataset, index: int) -> Sample:
        sample = read(self, index)
        if sample.path == "11.png":  # of the second set
            raise KeyboardInterrupt
        return sample

    monkeypatch.setattr(FolderDataset, "read", read_until)
    (places / "out").mkdir()
    (places / "out/report.html").write_text("an earlier one, which would contradict the rest")
    assert main(["evaluate", "jpeg:30", "--data", "photos", "more", "--out", "out", "--metrics", "psnr"]) == 130
    written = json.loads((places / "out/metrics.json").read_text())
    counts = [(r["data"], r["metrics"]["psnr"]["count"]) for r in written["results"] if r["tokenizer"] == "jpeg:30"]
    assert counts == [("photos", 12), ("more", 4)]
    assert written["failed"] == [{"data": "more", "why": "ended after 4 of 12 pictures: stopped"}]
    assert len((places / "out/items.jsonl").read_text().splitlines()) == 16
    assert not (places / "out/report.html").exists()


def test_a_set_that_breaks_off_keeps_what_was_seen_of_it(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FolderDataset.read

    def read_until(self: FolderDataset, index: int) -> Sample:
        sample = read(self, index)
        if sample.path == "18.png":  # the tenth of the first set
            raise OSError("input/output error")
        return sample

    monkeypatch.setattr(FolderDataset, "read", read_until)
    found = evaluate(["jpeg:30"], ["photos", "more"], "out", metrics=["psnr"], checks=False)
    assert [(one.data, one.metrics["psnr"].count) for one in found.results] == [("photos", 8), ("more", 12)]
    assert [str(failure) for failure in found.failed] == [
        "without photos: ended after 8 of 12 pictures: input/output error"
    ]
    (places / "first").mkdir()
    for index in range(0, 16, 2):
        os.link(places / f"photos/{index:02}.png", places / f"first/{index:02}.png")
    assert evaluate(["jpeg:30"], "first", metrics=["psnr"], checks=False).results[0].metrics == found.results[0].metrics


def test_metrics_without_anything_to_measure_are_missed(places: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "jpeg:30", "--data", "photos", "--out", "out", "--metrics", "psnr", "codebook_usage"])
    assert ended.value.code == 2
    written = json.loads((places / "out/metrics.json").read_text())
    assert written["failed"] == [{"metric": "codebook_usage", "why": "nothing to measure it on"}]
    assert written["results"][0]["metrics"].keys() == {"psnr"}


def test_where_several_cannot_be_opened_each_says_why(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (places / "page.pt").write_text("<html>")
    assert main(["evaluate", "page.pt", "broken.pt", "--data", "photos", "--out", "out", "--no-checks"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("without broken.pt: broken.pt: ")
    assert said.err.startswith("imtok evaluate: page.pt: ")


def test_a_picture_too_large_for_a_format_costs_that_format_alone(places: Path) -> None:
    (places / "long").mkdir()
    (places / "long/a.png").write_bytes(encode(np.zeros((16, 16384, 3), np.uint8)))
    found = evaluate(["jpeg:30", "webp:30"], "long", metrics=["psnr"], checks=False)
    (failure,) = found.failed
    assert (failure.tokenizer, failure.data) == ("webp:30", "long")
    assert failure.why.startswith("WEBP: cannot write 16384 x 16 pixels")
    assert [result.tokenizer for result in found.results] == ["jpeg:30"]


def test_a_judge_that_fails_costs_what_it_judges(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def stumble(self: PixelMeter, shown: object, drawn: object) -> object:
        looks.append(len(looks))
        if len(looks) == 2:
            raise ConfigError("no more of these")
        return process(self, shown, drawn)  # pyright: ignore[reportArgumentType]

    process = PixelMeter.process
    monkeypatch.setattr(PixelMeter, "process", stumble)
    found = evaluate("jpeg:30", "photos", metrics=["psnr", "bits_per_pixel"], checks=False)
    assert [(one.data, one.metric, one.why) for one in found.failed] == [
        ("photos", "pixels", "no more of these"),
        (None, "psnr", "nothing to measure it on"),
    ]
    assert found.score("jpeg:30", "photos", "bits_per_pixel").count == 12


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("there was no more"),
        torch.OutOfMemoryError("CUDA: there was no more"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: there was no more"),  # torch's own of the host
    ],
)
def test_a_picture_too_large_for_the_memory_costs_a_tokenizer_that_set(
    places: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def swell(*_: object) -> None:
        raise error

    monkeypatch.setattr("imtok.evaluation.reconstructors.TokenizerReconstructor.reconstruct", swell)
    found = evaluate(["jpeg:30", str(CHECKPOINT)], "photos", metrics=["psnr"], checks=False)
    (failure,) = found.failed
    assert (failure.tokenizer, failure.data) == (CHECKPOINT.name, "photos")
    assert failure.why == f"out of memory ({error}); --size makes large pictures smaller"


def test_where_the_first_one_fails_nothing_is_compared(places: Path) -> None:
    found = evaluate(["drawn", "jpeg:30", "webp:30"], ["photos", "more"], "out", metrics=["psnr"], checks=False)
    assert {(one.data, one.baseline) for one in found.comparisons} == {("more", "drawn")}
    assert {(one.data, one.baseline) for one in found.cases} == {("more", "drawn"), ("more", None)}
    assert found.score("webp:30", "photos", "psnr").count == 12


def test_a_set_ends_where_only_checks_are_left(places: Path) -> None:
    found = evaluate("drawn", ["photos", "more"], metrics=["psnr"])
    assert [(one.data, one.tokenizer) for one in found.failed] == [("photos", None)]
    assert {result.data for result in found.results} == {"more"}


@pytest.mark.parametrize(
    ("sources", "sets", "message"),
    [
        (["jpeg:30", "absent"], ["photos"], "absent: no such run folder"),
        (["jpeg:30"], ["photos", "absent"], "absent: no such file or folder"),
        (["broken.pt"], ["photos"], "broken.pt: "),
        (["jpeg:30"], ["torn.npz"], "torn.npz: "),
        (["nan.pt", "drawn"], ["photos"], "nan.pt: outputs NaN or infinity for 00.png"),
        (["nan.pt"], ["photos"], "nan.pt: outputs NaN or infinity for 00.png"),
    ],
)
def test_wrong_names_and_nothing_left_end_all(
    places: Path, sources: list[str], sets: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *sources, "--data", *sets, "--out", "out", "--metrics", "psnr", "--no-checks"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"imtok evaluate: {message}")
    assert said.err.count("\n") == 1
    assert list((places / "out").iterdir() if (places / "out").exists() else []) == []


def test_names_that_are_no_unicode_are_written_as_numbers(places: Path) -> None:
    (places / "photos/20.png").rename(places / "whole.png")  # which was not drawn
    for folder in ("photos", "drawn"):
        for file in (places / folder).iterdir():
            if file.name.startswith("02."):
                file.rename(os.fsdecode(os.fsencode(file.parent) + b"/th\xe9" + file.suffix.encode()))
    (places / "drawn").rename(os.fsdecode(b"dr\xe4wn"))
    (places / "photos").rename(os.fsdecode(b"ph\xf6tos"))
    drawn, photos = (os.fsdecode(name) for name in (b"dr\xe4wn", b"ph\xf6tos"))
    found = evaluate([drawn, "jpeg:30"], [photos], "out", metrics=["psnr"], checks=False)
    assert [found.score(name, r"ph\udcf6tos", "psnr").count for name in (r"dr\udce4wn", "jpeg:30")] == [11, 11]
    assert r"dr\udce4wn" in (places / "out/report.html").read_text()
    (places / "whole.png").rename(Path(photos) / "20.png")
    found = evaluate([drawn, "jpeg:30"], [photos], "out", metrics=["psnr"], checks=False)
    assert r"without dr\udce4wn on ph\udcf6tos" in str(found.failed[0])
    assert r"without dr\udce4wn on ph\udcf6tos" in (places / "out/report.html").read_text()
