import json

import pytest

from imtok.data.captions import make_captioner, split_word_limit
from imtok.data.sample import DataError, Sample


def sample(path: str = "a/p.jpg", **fields) -> Sample:
    return Sample(image=b"", path=path, width=9, height=9, **fields)


def test_template_is_filled_in_unless_captions_exist():
    captioner = make_captioner("a photo of a {label}")
    assert captioner(sample(label="barn_spider")) == ["a photo of a barn spider"]
    assert captioner(sample(label="dog", captions=["mine"])) == ["mine"]
    assert captioner(sample()) == []


def test_table_captions_are_found_by_path(tmp_path):
    rows = [
        {"image": "a/p.jpg", "captions": ["one", "two"]},
        {"image": "q.jpg", "caption": "three"},
        {"image": "q.jpg", "caption": 4},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    captioner = make_captioner(str(tmp_path / "c.jsonl"))
    assert captioner(sample(captions=["old"])) == ["one", "two"]
    assert captioner(sample("elsewhere/q.jpg")) == ["three", "4"]
    assert captioner(sample("x.jpg", captions=["old"])) == ["old"]
    listed = ("/data/photos/a.jpg", "/data/photos/sub/a.jpg", "photos/b.jpg")
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"image": entry, "caption": entry}) for entry in listed))
    captioner = make_captioner(str(tmp_path / "d.jsonl"))
    for path, entry in zip(("a.jpg", "sub/a.jpg", "b.jpg"), listed, strict=True):
        assert captioner(sample(path)) == [entry]
    assert captioner(sample("other/a.jpg")) == []
    (tmp_path / "c.csv").write_text('file,caption\na/p.jpg,"one, only"\n')
    assert make_captioner(str(tmp_path / "c.csv"))(sample()) == ["one, only"]


@pytest.mark.parametrize(
    "captions", ["gone.jsonl", "a {colour} {label}", "a {label", "{}", "a {label:d}", "{label!x}", "no field"]
)
def test_rejects_missing_table_and_invalid_template(captions):
    with pytest.raises(DataError, match=r"captions|caption template"):
        make_captioner(captions)


def test_rejects_table_without_image_column(tmp_path):
    (tmp_path / "c.csv").write_text("name,caption\na,b\n")
    with pytest.raises(DataError, match=r"c\.csv:2: names no image"):
        make_captioner(str(tmp_path / "c.csv"))


def test_word_limit_suffix_of_a_model() -> None:
    assert split_word_limit("models/llava:25") == ("models/llava", 25)
    assert split_word_limit("models/llava") == ("models/llava", 75)
    assert split_word_limit("models/llava:²") == ("models/llava:²", 75)  # a digit, but no number
    with pytest.raises(DataError, match="captions of no words"):
        split_word_limit("models/llava:0")


def test_rejects_ambiguous_file_name_unless_its_captions_agree(tmp_path):
    rows = [{"image": f"{folder}/1.jpg", "caption": f"a {folder}"} for folder in ("cats", "dogs")]
    rows += [{"image": f"{folder}/2.jpg", "caption": "a pet"} for folder in ("cats", "dogs")]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    captioner = make_captioner(str(tmp_path / "c.jsonl"))
    assert captioner(sample("dogs/1.jpg")) == captioner(sample("data/dogs/1.jpg")) == ["a dogs"]
    assert captioner(sample("2.jpg")) == ["a pet"]
    with pytest.raises(DataError, match=r"1\.jpg: is it the table's cats/1\.jpg or dogs/1\.jpg"):
        captioner(sample("1.jpg"))
