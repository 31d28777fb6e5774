import re
from pathlib import Path

import pytest

from imtok.cli import main
from imtok.demo import Scores, table
from imtok.evaluation.text import ReadWord
from imtok.tokenizers import shipped


def scores(*words: tuple[str, str, str]) -> Scores:
    return Scores("x", "signs", 2, 0.1875, 20.0, 0.5, [ReadWord(*word) for word in words], [])


def test_only_words_that_the_judge_reads_on_the_original_count() -> None:
    row = scores(("OPEN", "open", "Open!"), ("SALE", "SALE", "5ALE"), ("Exit", "Fxit", "Exit"), ("", "", ""))
    assert [word.text for word in row.readable()] == ["OPEN", "SALE"]
    assert [word.text for word in row.still_read()] == ["OPEN"]
    assert "1 of 2" in table([row])


@pytest.mark.skipif(not shipped(), reason="no tokenizer is shipped yet")
def test_demo_runs_and_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], needs) -> None:
    for name in ("text_judge/easyocr", "face_judge/dlib", "text_detector/ppocrv6", "face_detector/mtcnn"):
        needs(name)
    assert main(["demo", "--out", str(tmp_path), "--signs", "4"]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^\| (\S+) +\| (\d+) ([a-z ]+?) +\|", shown, re.MULTILINE)
    assert {(name, kind) for name, _, kind in rows} == {
        (name, kind) for name in shipped() for kind in ("photos", "page of text", "signs")
    }
    for name in shipped():
        assert len(list((tmp_path / name / "signs").glob("*.png"))) == 4
