import pytest
from PIL import ImageFont

from imtok.data import fonts
from imtok.data.fonts import Typeface, find_typefaces
from imtok.data.sample import DataError

needs_fonts = pytest.mark.skipif(len(list(fonts._installed())) < 20, reason="the fontpkg packages are not installed")


@needs_fonts
def test_splits_partition_at_least_20_families():
    families = {split: {face.family for face in find_typefaces(split=split)} for split in ("train", "test", "all")}
    assert families["train"] | families["test"] == families["all"]
    assert not families["train"] & families["test"]
    assert len(families["all"]) >= 20
    assert len(families["test"]) >= 3
    assert find_typefaces() == find_typefaces()


@needs_fonts
def test_weights_of_a_variable_font_differ():
    regular, bold = (face for face in find_typefaces(split="all") if face.family == "Oswald")
    assert (regular.weight, bold.weight) == (400, 700)
    assert bold.font(40).getlength("HEAVY") > regular.font(40).getlength("HEAVY")


@needs_fonts
def test_detects_capitals_only_typefaces_and_missing_letters():
    faces = {face.family: face for face in find_typefaces(split="all")}
    assert not faces["Bebas Neue"].has_lower_case
    assert not faces["Bungee"].has_lower_case
    assert faces["Arvo"].has_lower_case
    assert faces["Rubik"].draws("Tea for £2, €3 & $4!")
    assert not faces["Arvo"].draws("€3")
    assert not faces["Press Start 2P"].draws("日本")


def test_falls_back_to_pillows_font_without_font_packages(monkeypatch):
    monkeypatch.setattr(fonts, "entry_points", lambda group: ())
    for split in ("train", "test"):
        (face,) = find_typefaces(split=split)
        assert isinstance(face.font(20), ImageFont.FreeTypeFont)
        assert face.has_lower_case


def test_typefaces_from_a_user_folder(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no \.ttf or \.otf"):
        find_typefaces(str(tmp_path))
    default = ImageFont.load_default(10)
    (tmp_path / "mine.ttf").write_bytes(default.font_bytes)
    (face,) = find_typefaces(str(tmp_path), "test")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match=r"broken.ttf: no typeface that can be read"):
        find_typefaces(str(tmp_path))
    (tmp_path / "broken.ttf").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(fonts, "_in_folder", lambda folder: [Typeface(family=name, path="x.ttf") for name in "AB"])
        patch.setattr(fonts, "in_split", lambda family, split: split == "train")
        with pytest.raises(DataError, match="none of its families falls into the split test"):
            find_typefaces(str(tmp_path), "test")
    assert face == Typeface(family=default.getname()[0], path=str(tmp_path / "mine.ttf"))
