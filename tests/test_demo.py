import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.cli import main
from imtok.config import to_dict
from imtok.demo import demo
from imtok.tokenizers import build, load, shipped


def test_demo_prints_its_table_and_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], needs) -> None:
    for name in ("text_judge/easyocr", "face_judge/dlib", "text_detector/ppocrv6", "face_detector/mtcnn"):
        needs(name)
    assert main(["demo", "--out", str(tmp_path), "--signs", "4"]) == 0
    grids = [name for name in shipped() if load(name).tokens_on_grid]
    first, second = tables(capsys.readouterr().out)
    assert {tuple(row[:2]) for row in first[2:]} == {
        (name, data) for name in grids for data in ("signs", "page of text", "photos")
    }
    without_grid = ("baseline-nano", "textok-nano", "textok-nano, wrong captions")
    assert {tuple(row[:2]) for row in second[2:]} == {
        (name, f"signs of {words} words") for name in without_grid for words in ("known", "new")
    }
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    page = next(r["metrics"] for r in results if r["data"] == "page of text")
    assert page["text_accuracy"]["count"] > 20
    assert next(r["metrics"] for r in results if r["data"] == "photos")["face_similarity"]["count"] == 1
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()


def test_demo_evaluates_gridless_tokenizers_with_wrong_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, needs: Callable[[str], Any]
) -> None:
    for name in ("text_judge/easyocr", "text_encoder/minilm"):
        needs(name)
    run = RunFolder(tmp_path / "untrained")
    config = presets.get("textok-debug")
    run.write_config(to_dict(config))
    run.write_model(build(config.tokenizer).weights())
    monkeypatch.setattr("imtok.demo.shipped", lambda: [str(run.path)])
    (evaluation,) = demo(tmp_path / "out", signs=3)
    assert list(evaluation.tokenizers) == ["untrained", "untrained, wrong captions"]
    assert [(data.name, data.pictures) for data in evaluation.sets] == [
        ("signs of known words", 3),
        ("signs of new words", 3),
    ]
    assert "| untrained, wrong captions | signs of new words" in capsys.readouterr().out
    assert "sign that says" in (tmp_path / "out/captions/report.html").read_text()


@pytest.mark.slow  # about two minutes
def test_readme_tables_equal_the_demo_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], needs: Callable[[str], Any]
) -> None:
    """Labels are equal; numbers may differ by the rounding of another processor: one word in twenty, a twentieth dB."""
    for name in ("text_judge/easyocr", "face_judge/dlib", "text_detector/ppocrv6", "face_detector/mtcnn"):
        needs(name)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for printed, stated in zip(tables(capsys.readouterr().out), tables(readme), strict=True):
        assert [row[:2] for row in printed] == [row[:2] for row in stated]
        assert printed[0] == stated[0]
        for ours, theirs in zip(printed[2:], stated[2:], strict=True):
            assert [float(cell or 0) for cell in ours[2:]] == pytest.approx(
                [float(cell or 0) for cell in theirs[2:]], abs=0.05
            )


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each Markdown table whose first column is headed `tokenizer`."""
    found = re.findall(r"^\| tokenizer .*\n(?:\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in found]
