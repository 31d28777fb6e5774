"""What cannot be measured is left out, reported in one line and recorded in the results; nothing else changes."""

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


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets, reconstructions that lack a picture of the first set, a checkpoint of NaN, and unusable files."""
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
    torch.save({"model": Payload(tmp_path / "executed")}, tmp_path / "evil.pt")
    (tmp_path / "small").mkdir()
    for index in range(24):
        (tmp_path / f"small/{index:02}.png").write_bytes(encode(np.zeros((16, 16, 3), np.uint8)))
    monkeypatch.setattr("imtok.evaluation.sets._BATCH", 4)  # so that a failure occurs after the first batch
    monkeypatch.setattr("imtok.evaluation.statistics.RESAMPLES", 200)  # intervals are tested elsewhere
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_own_weights")
def test_failures_do_not_change_the_other_results(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["jpeg:30", "drawn", "broken.pt", "evil.pt", "nan.pt", "small", "webp:30"]
    options = ["--metrics", "psnr", "fid"]
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", *sources, "--data", "photos", "torn.npz", "more", "--out", "out", *options, "--no-checks"])
    assert exit_info.value.code == 2
    written = json.loads((workspace / "out/metrics.json").read_text())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("without ")]
    expected = [
        ("torn.npz", {"data": "torn.npz"}, "torn.npz: "),
        ("broken.pt", {"tokenizer": "broken.pt"}, "broken.pt: "),
        ("evil.pt", {"tokenizer": "evil.pt"}, "evil.pt: refused: holds more than tensors"),
        ("fid", {"metric": "fid"}, "vision/inception is missing"),
        ("drawn on photos", {"tokenizer": "drawn", "data": "photos"}, "drawn: holds no reconstruction of 20.png;"),
        ("nan.pt on photos", {"tokenizer": "nan.pt", "data": "photos"}, "nan.pt: outputs NaN or infinity for 00.png"),
        ("small on photos", {"tokenizer": "small", "data": "photos"}, "small/00.png: has 16 x 16 pixels, its original"),
        ("nan.pt on more", {"tokenizer": "nan.pt", "data": "more"}, "nan.pt: outputs NaN or infinity for 01.png"),
        ("small on more", {"tokenizer": "small", "data": "more"}, "small/01.png: has 16 x 16 pixels, its original"),
    ]
    assert not (workspace / "executed").exists()
    page = html.unescape((workspace / "out/report.html").read_text())
    for line, failure, (what, names, why) in zip(lines, written["failed"], expected, strict=True):
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
    alone = json.loads((workspace / "alone/metrics.json").read_text())
    assert written["results"][:2] == alone["results"]
    assert [one for one in written["comparisons"] if one["data"] == "photos"] == alone["comparisons"]
    items = [(workspace / folder / "items.jsonl").read_text().splitlines() for folder in ("out", "alone")]
    assert items[0][:12] == items[1]


def test_results_so_far_are_written_if_a_later_set_is_interrupted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = FolderDataset.read

    def read_or_interrupt(self: FolderDataset, index: int) -> Sample:
        sample = read(self, index)
        if sample.path == "11.png":  # of the second set
            raise KeyboardInterrupt
        return sample

    monkeypatch.setattr(FolderDataset, "read", read_or_interrupt)
    (workspace / "out").mkdir()
    (workspace / "out/report.html").write_text("an earlier one, which would contradict the rest")
    assert main(["evaluate", "jpeg:30", "--data", "photos", "more", "--out", "out", "--metrics", "psnr"]) == 130
    written = json.loads((workspace / "out/metrics.json").read_text())
    counts = [(r["data"], r["metrics"]["psnr"]["count"]) for r in written["results"] if r["tokenizer"] == "jpeg:30"]
    assert counts == [("photos", 12), ("more", 4)]
    assert written["failed"] == [{"data": "more", "why": "ended after 4 of 12 pictures: stopped"}]
    assert len((workspace / "out/items.jsonl").read_text().splitlines()) == 16
    assert not (workspace / "out/report.html").exists()


def test_a_read_error_keeps_results_of_complete_batches(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FolderDataset.read

    def read_or_fail(self: FolderDataset, index: int) -> Sample:
        sample = read(self, index)
        if sample.path == "18.png":  # the tenth of the first set
            raise OSError("input/output error")
        return sample

    monkeypatch.setattr(FolderDataset, "read", read_or_fail)
    found = evaluate(["jpeg:30"], ["photos", "more"], "out", metrics=["psnr"], checks=False)
    assert [(one.data, one.metrics["psnr"].count) for one in found.results] == [("photos", 8), ("more", 12)]
    assert [str(failure) for failure in found.failed] == [
        "without photos: ended after 8 of 12 pictures: input/output error"
    ]
    (workspace / "first").mkdir()
    for index in range(0, 16, 2):
        os.link(workspace / f"photos/{index:02}.png", workspace / f"first/{index:02}.png")
    assert evaluate(["jpeg:30"], "first", metrics=["psnr"], checks=False).results[0].metrics == found.results[0].metrics


def test_metrics_that_apply_to_no_tokenizer_are_reported_as_failed(workspace: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", "jpeg:30", "--data", "photos", "--out", "out", "--metrics", "psnr", "codebook_usage"])
    assert exit_info.value.code == 2
    written = json.loads((workspace / "out/metrics.json").read_text())
    assert written["failed"] == [{"metric": "codebook_usage", "why": "nothing to measure it on"}]
    assert written["results"][0]["metrics"].keys() == {"psnr"}


def test_every_tokenizer_that_cannot_be_opened_is_reported(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "page.pt").write_text("<html>")
    assert main(["evaluate", "page.pt", "broken.pt", "--data", "photos", "--out", "out", "--no-checks"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("without broken.pt: broken.pt: ")
    assert captured.err.startswith("imtok evaluate: page.pt: ")


def test_a_picture_too_large_for_a_codec_drops_only_that_codec(workspace: Path) -> None:
    (workspace / "long").mkdir()
    (workspace / "long/a.png").write_bytes(encode(np.zeros((16, 16384, 3), np.uint8)))
    found = evaluate(["jpeg:30", "webp:30"], "long", metrics=["psnr"], checks=False)
    (failure,) = found.failed
    assert (failure.tokenizer, failure.data) == ("webp:30", "long")
    assert failure.why.startswith("WEBP: cannot write 16384 x 16 pixels")
    assert [result.tokenizer for result in found.results] == ["jpeg:30"]


def test_a_failing_meter_drops_only_its_own_metrics(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def process_or_fail(self: PixelMeter, originals: object, reconstructions: object) -> object:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ConfigError("no more of these")
        return process(self, originals, reconstructions)  # pyright: ignore[reportArgumentType]

    process = PixelMeter.process
    monkeypatch.setattr(PixelMeter, "process", process_or_fail)
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
        RuntimeError("DefaultCPUAllocator: can't allocate memory: there was no more"),  # torch's error for host memory
    ],
)
def test_out_of_memory_drops_the_tokenizer_on_that_set(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise error

    monkeypatch.setattr("imtok.evaluation.reconstructors.TokenizerReconstructor.reconstruct", run_out_of_memory)
    found = evaluate(["jpeg:30", str(CHECKPOINT)], "photos", metrics=["psnr"], checks=False)
    (failure,) = found.failed
    assert (failure.tokenizer, failure.data) == (CHECKPOINT.name, "photos")
    assert failure.why == f"out of memory ({error}); --size makes large pictures smaller"


def test_no_comparisons_on_a_set_where_the_first_tokenizer_failed(workspace: Path) -> None:
    found = evaluate(["drawn", "jpeg:30", "webp:30"], ["photos", "more"], "out", metrics=["psnr"], checks=False)
    assert {(one.data, one.baseline) for one in found.comparisons} == {("more", "drawn")}
    assert {(one.data, one.baseline) for one in found.cases} == {("more", "drawn"), ("more", None)}
    assert found.score("webp:30", "photos", "psnr").count == 12


def test_a_set_is_dropped_if_only_self_checks_are_left(workspace: Path) -> None:
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
def test_wrong_names_and_lack_of_usable_inputs_abort_the_evaluation(
    workspace: Path, sources: list[str], sets: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *sources, "--data", *sets, "--out", "out", "--metrics", "psnr", "--no-checks"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"imtok evaluate: {message}")
    assert captured.err.count("\n") == 1
    assert list((workspace / "out").iterdir() if (workspace / "out").exists() else []) == []


def test_non_unicode_names_are_written_as_escape_sequences(workspace: Path) -> None:
    (workspace / "photos/20.png").rename(workspace / "whole.png")  # it has no reconstruction
    for folder in ("photos", "drawn"):
        for file in (workspace / folder).iterdir():
            if file.name.startswith("02."):
                file.rename(os.fsdecode(os.fsencode(file.parent) + b"/th\xe9" + file.suffix.encode()))
    (workspace / "drawn").rename(os.fsdecode(b"dr\xe4wn"))
    (workspace / "photos").rename(os.fsdecode(b"ph\xf6tos"))
    reconstructions, photos = (os.fsdecode(name) for name in (b"dr\xe4wn", b"ph\xf6tos"))
    found = evaluate([reconstructions, "jpeg:30"], [photos], "out", metrics=["psnr"], checks=False)
    assert [found.score(name, r"ph\udcf6tos", "psnr").count for name in (r"dr\udce4wn", "jpeg:30")] == [11, 11]
    assert r"dr\udce4wn" in (workspace / "out/report.html").read_text()
    (workspace / "whole.png").rename(Path(photos) / "20.png")
    found = evaluate([reconstructions, "jpeg:30"], [photos], "out", metrics=["psnr"], checks=False)
    assert r"without dr\udce4wn on ph\udcf6tos" in str(found.failed[0])
    assert r"without dr\udce4wn on ph\udcf6tos" in (workspace / "out/report.html").read_text()
