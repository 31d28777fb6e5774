import os
from pathlib import Path

import numpy as np
import pytest

from imtok.config import ConfigError
from imtok.pretrained import Reading, registry
from imtok.pretrained.readers import TesseractReader

WORDS = ["Hello", "WORLD", "reading", "1984", "tokenizer", "Question?"]


@pytest.mark.parametrize("name", ["text_judge/easyocr", "text_judge/tesseract"])
def test_rendered_words_are_read(needs, draw_word, name: str) -> None:
    judge = needs(name)
    readings = judge.read([draw_word(word) for word in WORDS])
    correct = sum(reading.text.lower() == word.lower() for reading, word in zip(readings, WORDS, strict=True))
    assert correct >= 5
    assert all(0 <= reading.score <= 1 for reading in readings)
    assert judge.read([]) == []


def test_readings_do_not_depend_on_the_batch(needs, draw_word) -> None:
    judge = needs("text_judge/easyocr")
    crops = [draw_word(word, height) for word, height in zip(WORDS, (20, 31, 40, 64, 90, 25), strict=True)]
    together = judge.read(crops)
    for crop, reading in zip(crops, together, strict=True):
        (alone,) = judge.read([crop])
        assert alone.text == reading.text
        assert alone.score == pytest.approx(reading.score, abs=1e-4)


def test_blur_lowers_the_judges_confidence(needs, draw_word) -> None:
    judge = needs("text_judge/easyocr")
    crop = draw_word("tokenizer")
    pixelated = crop[::8, ::8].repeat(8, 0).repeat(8, 1)
    clear, blurred = judge.read([crop, pixelated])
    assert clear.text == "tokenizer" != blurred.text
    assert blurred.score < clear.score


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (40, 100)])
def test_blank_crops_give_almost_no_text(needs, size) -> None:
    (reading,) = needs("text_judge/easyocr").read([np.full((*size, 3), 255, np.uint8)])
    assert len(reading.text) <= 2


@pytest.mark.skipif(os.name == "nt", reason="the stand-in program is a shell script")
def test_parses_tesseracts_table_and_reports_its_errors(
    tmp_path: Path, draw_word, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eng.traineddata").write_bytes(b"of something else")
    program = tmp_path / "tesseract"
    header = r"level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
    place = r"1\t1\t1\t1\t1\t0\t0\t9\t9"
    rows = rf"4\t{place}\t-1\t\n5\t{place}\t90\tgood\n5\t{place}\t70\tday\n"
    languages = '[ "$1" = --list-langs ] && printf "List of available languages (1):\\neng\\n" && exit\n'
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{languages}printf '{header}{rows}'\n")
    program.chmod(0o755)
    assert TesseractReader(program).read([draw_word("good day")]) == [Reading("good day", 0.8)]
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{languages}printf '{header}'\n")
    assert TesseractReader(program).read([draw_word("")]) == [Reading("", 0.0)]
    monkeypatch.setattr(registry.shutil, "which", lambda name: str(program))
    reader = registry.load("text_judge/tesseract")
    assert reader.sha256 == ""  # its model is unknown and must not be mistaken for another in a cache
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'Error opening data file eng.traineddata' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"tesseract: failed \(Error opening data file eng.traineddata\)"):
        reader.read([draw_word("good day")])
    program.write_text("#!/bin/sh\nprintf 'List of available languages (1):\\ndeu\\n'\n")
    with pytest.raises(ConfigError, match="has no English model"):
        TesseractReader(program)
