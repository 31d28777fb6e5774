import json
from pathlib import Path

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
