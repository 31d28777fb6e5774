import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imtok.cli import main
from imtok.tokenizers import shipped


@pytest.mark.skipif(not shipped(), reason="no tokenizer is shipped yet")
def test_demo_prints_its_table_and_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], needs) -> None:
    for name in ("text_judge/easyocr", "face_judge/dlib", "text_detector/ppocrv6", "face_detector/mtcnn"):
        needs(name)
    assert main(["demo", "--out", str(tmp_path), "--signs", "4"]) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert {(name.strip(), data.strip()) for name, data in rows[2:]} == {
        (name, data) for name in shipped() for data in ("signs", "page of text", "photos")
    }
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    page = next(r["metrics"] for r in results if r["data"] == "page of text")
    assert page["text_accuracy"]["count"] > 20
    assert next(r["metrics"] for r in results if r["data"] == "photos")["face_similarity"]["count"] == 1
    assert "data:image/png" in (tmp_path / "report.html").read_text()


@pytest.mark.slow  # about two minutes
@pytest.mark.skipif(not shipped(), reason="no tokenizer is shipped yet")
def test_the_readme_s_table_is_what_the_demo_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], needs: Callable[[str], Any]
) -> None:
    """To the word, and to the numbers but for what another processor may round: a word in twenty, a twentieth dB."""
    for name in ("text_judge/easyocr", "face_judge/dlib", "text_detector/ppocrv6", "face_detector/mtcnn"):
        needs(name)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    printed = table(capsys.readouterr().out)
    stated = table((Path(__file__).parents[1] / "README.md").read_text())
    assert [row[:2] for row in printed] == [row[:2] for row in stated]
    assert printed[0] == stated[0]
    for ours, theirs in zip(printed[2:], stated[2:], strict=True):
        assert [float(cell or 0) for cell in ours[2:]] == pytest.approx(
            [float(cell or 0) for cell in theirs[2:]], abs=0.05
        )


def table(text: str) -> list[list[str]]:
    """The cells of the table that begins with the tokenizers' names."""
    lines = text[text.index("| tokenizer ") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
