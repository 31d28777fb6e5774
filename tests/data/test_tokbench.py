"""Reading TokBench's release, from a small folder in its layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from imtok.data.pictures import encode
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError, Face, PictureError
from imtok.evaluation.evaluate import evaluate
from imtok.evaluation.faces import size_ratio as face_ratio
from imtok.evaluation.text import crop_word, is_scored, size_ratio

POINTS = [[40, 50], [60, 50], [50, 60], [42, 70], [58, 70]]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two sets of words and one of faces."""
    word = {"bbox": [12.7, 30.2, 58.9, 51.0], "rec": "Hello", "ratio": 0.033125}
    for name in ("ic13", "tt"):
        folder = tmp_path / "images/text_data" / name
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(encode(np.full((80, 120, 3), 90, dtype=np.uint8), "JPEG"))
        entry = {"file_name": "a.jpg", "height": 80, "width": 120, "annotations": [word, word | {"rec": "4"}]}
        write(tmp_path / f"annotations/text_{name}.json", [entry])
    folder = tmp_path / "images/face_data/wflw/deep"
    folder.mkdir(parents=True)
    (folder / "b.png").write_bytes(encode(np.full((100, 100, 3), 90, dtype=np.uint8)))
    face = {"kps": POINTS, "ratio": 0.21, "box": ["whatever"], "gt": None}
    entry = {"image_name": "deep/b.png", "img_height": 100, "img_width": 100, "faces": [face]}
    write(tmp_path / "annotations/face_meta.json", [entry])
    return tmp_path


def write(file: Path, rows: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows))


def test_annotation_file_can_be_opened_from_its_own_folder(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(release / "annotations")
    for name in ("text_ic13.json", "./text_ic13.json"):
        (sample,) = open_dataset(name)
        assert sample.width == 120


def test_words_have_the_stated_size_ratio_and_are_cropped_to_their_box(release: Path) -> None:
    (sample,) = open_dataset(release / "annotations/text_ic13.json")
    assert sample.path == "images/text_data/ic13/a.jpg"
    assert sample.faces is None
    assert sample.words is not None
    word, short = sample.words
    assert (word.box, word.text) == ((12.0, 30.0, 58.0, 51.0), "Hello")  # truncated towards zero
    assert size_ratio(word, sample.width, sample.height) == 0.033125  # not 46 / (5 * 120) = 0.077
    assert crop_word(np.zeros((80, 120, 3), dtype=np.uint8), word).shape == (21, 46, 3)
    assert is_scored(short)  # every listed word is scored


def test_faces_have_the_stated_size_ratio_and_landmarks(release: Path) -> None:
    (sample,) = open_dataset(release / "annotations/face_meta.json")
    assert sample.faces == [
        Face(box=(30.0, 40.0, 70.0, 80.0), landmarks=tuple((float(x), float(y)) for x, y in POINTS), ratio=0.21)
    ]
    assert face_ratio(sample.faces[0], 100, 100) == 0.21


def test_release_folder_opens_all_sets(release: Path) -> None:
    sets = [sample.path.split("/")[-2:] for sample in open_dataset(release)]
    assert sets == [["deep", "b.png"], ["ic13", "a.jpg"], ["tt", "a.jpg"]]
    found = evaluate("jpeg:50", release, metrics=["psnr"], size=64, checks=False)
    assert (found.sets[0].pictures, found.sets[0].unreadable) == (3, 0)


def test_rejects_missing_pictures_and_malformed_entries_and_files(release: Path) -> None:
    (release / "images/text_data/tt/a.jpg").unlink()
    with pytest.raises(PictureError, match=r"images/text_data/tt/a\.jpg"):
        open_dataset(release / "annotations/text_tt.json")[0]
    write(release / "annotations/text_tt.json", [{"file_name": "a.jpg", "annotations": [{"bbox": [1, 2]}]}])
    with pytest.raises(PictureError, match=r"text_tt\.json: entry 0 is malformed \(KeyError\('rec'\)\)"):
        open_dataset(release / "annotations/text_tt.json")[0]
    words = [{"bbox": [0, 0, float("inf"), 9], "rec": "OPEN", "ratio": 0.1}]
    write(release / "annotations/text_tt.json", [{"file_name": "a.jpg", "annotations": words}])
    with pytest.raises(PictureError, match=r"text_tt\.json: entry 0 is malformed \(OverflowError"):
        open_dataset(release / "annotations/text_tt.json")[0]
    write(release / "annotations/other.json", [])
    for name, message in (("other.json", "expected TokBench's text_SET.json"), ("text_tt.json", "not JSON")):
        (release / "annotations/text_tt.json").write_text("[")
        with pytest.raises(DataError, match=message):
            open_dataset(release / "annotations" / name)


def test_rejects_addresses_as_picture_names(release: Path) -> None:
    entry = {"file_name": "a.jpg::memory://b.jpg", "height": 80, "width": 120, "annotations": []}
    write(release / "annotations/text_ic13.json", [entry])
    with pytest.raises(PictureError, match=r"entry 0 names an address, images/text_data/ic13/a\.jpg::memory"):
        open_dataset(release / "annotations/text_ic13.json")[0]


def test_release_can_be_read_from_a_zip_archive(release: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = shutil.make_archive(str(tmp_path_factory.mktemp("packed") / "release"), "zip", release)
    (sample,) = open_dataset(f"zip://annotations/text_ic13.json::{packed}")
    assert (sample.width, len(sample.words or [])) == (120, 2)
    assert len(open_dataset(f"zip://::{packed}")) == len(open_dataset(release))
