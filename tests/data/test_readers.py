import csv
import errno
import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data as skimage_data

from imtok.data.pictures import decode, encode, load_images
from imtok.data.readers import FolderDataset, ParquetDataset, TableDataset, TarDataset, fingerprint, open_dataset
from imtok.data.sample import DataError, PictureError, Sample
from imtok.data.shards import ShardReader, ShardWriter

PHOTO = skimage_data.coffee()[:60, :80]
JPEG = encode(PHOTO, "JPEG")


def put(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)


def test_folder_of_classes(tmp_path):
    put(tmp_path, "dog/1.jpg", "dog/more/2.JPG", "cat/3.jpeg")
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    source = open_dataset(tmp_path)
    assert isinstance(source, FolderDataset)
    assert [(s.path, s.label) for s in source] == [
        ("cat/3.jpeg", "cat"),
        ("dog/1.jpg", "dog"),
        ("dog/more/2.JPG", "dog"),
    ]
    assert (source[0].width, source[0].height, source[0].words, source[0].faces) == (80, 60, None, None)
    assert source[0].image == JPEG
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_symlinked_folders_are_searched_but_loops_are_not(tmp_path):
    put(tmp_path, "real/1.jpg", "in/dog/2.jpg")
    (tmp_path / "in/cat").symlink_to(tmp_path / "real")
    (tmp_path / "in/dog/again").symlink_to(tmp_path / "in")
    assert [(s.path, s.label) for s in open_dataset(tmp_path / "in")] == [("cat/1.jpg", "cat"), ("dog/2.jpg", "dog")]


def test_raises_if_a_folder_cannot_be_listed(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    real = os.scandir

    def scandir(place):
        if str(place).endswith("b"):
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(PermissionError):
        open_dataset(tmp_path)


@pytest.mark.parametrize("names", [("a.jpg", "x/b.jpg", "y/c.jpg"), ("images/a.jpg", "images/b.jpg")])
def test_folder_without_classes(tmp_path, names):
    put(tmp_path, *names)
    assert [s.label for s in open_dataset(str(tmp_path))] == [None] * len(names)


def test_bad_picture_leaves_the_others_readable(tmp_path):
    put(tmp_path, "a.jpg", "c.jpg")
    (tmp_path / "b.jpg").write_text("hello")
    source = open_dataset(tmp_path)
    with pytest.raises(PictureError, match=r"b\.jpg: not a picture"):
        source[1]
    assert source[2].path == "c.jpg"


def test_disk_errors_are_not_reported_as_picture_errors(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    put(tmp_path, "a.jpg")
    source = open_dataset(tmp_path)
    monkeypatch.setattr(type(fsspec.filesystem("file")), "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source[0]


QUAD = [[0, 3], [20, 3], [20, 15], [0, 15]]
ROWS = [
    {
        "image": "a.jpg",
        "size": [80, 60],
        "words": [
            {
                "box": [-2, 3, 20, 15],
                "text": "MUG",
                "level": "word",
                "score": 0.5,
                "quad": QUAD,
            },
            {"box": [90, 0, 99, 9], "text": "outside"},
        ],
        "ignore": [[1, 2, 3, 4]],
        "label": "gt",
        "source": "mine",
        "cluster": "k1",
    },
    {"file_name": "b.jpg", "faces": [{"box": [1, 2, 30, 40], "conf": 0.25}], "class": "person", "captions": ["x", "y"]},
    {"path": "sub/c.jpg", "caption": "one, only", "faces": []},
]


def check_rows(source):
    first, second, third = source
    assert first.words is not None
    assert [(w.text, w.box, w.score) for w in first.words] == [("MUG", (0, 3, 20, 15), 0.5)]
    assert first.words[0].quad == tuple(map(tuple, QUAD))
    assert (first.label, first.source, first.cluster, first.faces) == ("gt", "mine", "k1", None)
    assert second.faces is not None
    assert (second.faces[0].box, second.faces[0].score, second.faces[0].landmarks) == ((1, 2, 30, 40), 0.25, None)
    assert (second.label, second.captions) == ("person", ["x", "y"])
    assert (third.path, third.captions, third.faces, third.words) == ("sub/c.jpg", ["one, only"], [], None)


def test_jsonl_beside_images(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "unlisted.jpg")
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    (tmp_path / "other.csv").write_text("name,price\nx,1\n")  # lists no images, so it is ignored
    check_rows(open_dataset(tmp_path))
    check_rows(open_dataset(tmp_path / "metadata.jsonl"))
    (tmp_path / "second.jsonl").write_text('{"image": "a.jpg"}\n')
    with pytest.raises(DataError, match="2 tables"):
        open_dataset(tmp_path)


def test_csv_beside_images(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg")
    columns = ["image", "words", "faces", "captions", "caption", "label", "source", "cluster"]
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in ROWS:
            image = row.get("image") or row.get("file_name") or row.get("path")
            cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
            writer.writerow(cells | {"image": image, "label": row.get("label") or row.get("class")})
    check_rows(open_dataset(tmp_path))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg", "size": [60, 80]}, r"made for \[60, 80\]"),
        ({"image": "a.jpg", "words": [{"text": "x"}]}, "no 'box'"),
        ({"image": "a.jpg", "words": [{"box": [1, 2, 3]}]}, "malformed"),
        ({"image": "a.jpg", "words": [{"box": [1, 2, float("nan"), 3]}]}, "not finite"),
        ({"image": "a.jpg", "faces": [{"box": [1, 2, 3, 4], "landmarks": [[1, 2]]}]}, "1 points, expected 5"),
        ({"image": "a.jpg", "words": "[{"}, "malformed"),
        ({"image": "a.jpg", "words": [{"box": [0, 0, 10**400, 9]}]}, "malformed"),
        ({"image": "a.jpg", "size": [float("inf"), 60]}, "malformed"),
        ({"image": "a.jpg", "words": "[" * 100_000}, "malformed"),
        ({"image": "a.jpg", "faces": [{"box": [1, 2, 3, 4], "landmarks": [[1, float("nan")]] * 5}]}, "not finite"),
        ({"image": "a.jpg", "words": [{"box": [1, 2, 3, 4], "quad": [[1, float("inf")]] * 4}]}, "not finite"),
        ({"image": "a\0.jpg"}, "null byte"),
        ({"image": "a" * 300}, "name too long"),
        ({"image": "gone.jpg"}, "No such file"),
        ({"picture": "a.jpg"}, "no column named"),
    ],
)
def test_rejects_bad_rows_with_reason(tmp_path, row, reason):
    put(tmp_path, "a.jpg")
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(PictureError, match=reason):
        open_dataset(tmp_path / "t.jsonl")[0]


def test_rejects_bad_tables_with_path_and_reason(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.jpg"}\n{"image": \n')
    with pytest.raises(DataError, match=r"t\.jsonl:2: not JSON"):
        open_dataset(tmp_path / "t.jsonl")
    for hostile in ("[" * 100_000, '{"image": "a.jpg", "label": ' + "9" * 5000 + "}"):
        (tmp_path / "t.jsonl").write_text(f'{{"image": "a.jpg"}}\n{hostile}\n')
        with pytest.raises(DataError, match=r"t\.jsonl:2: not JSON"):
            open_dataset(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: holds a list"):
        open_dataset(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(tmp_path / "t.jsonl")


def make_tar(path, mode: str = "w") -> None:
    members = {
        "s/0001.jpg": JPEG,
        "s/0001.txt": b"a mug of coffee\n",
        "s/0001.cls": b"7",
        "s/0001.json": json.dumps({"words": [{"box": [1, 2, 3, 4], "text": "hi"}], "source": "web"}).encode(),
        "../../0002.png": encode(PHOTO),
        "s/0003.txt": b"no picture",
        "s/0004.seg.png": JPEG,
        "s/0004.JPEG": JPEG,
    }
    with tarfile.open(path, mode) as tar:
        tar.addfile(folder := tarfile.TarInfo("s"))
        folder.type = tarfile.DIRTYPE
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("name", "mode"), [("w.tar", "w"), ("w.tar.gz", "w:gz"), ("w.tgz", "w:gz")])
def test_webdataset_is_read_without_extracting(tmp_path, name, mode):
    make_tar(tmp_path / name, mode)
    before = sorted(tmp_path.parent.rglob("*"))
    source = open_dataset(tmp_path)
    assert isinstance(source, TarDataset)
    assert len(source) == 4
    first = source[0]
    assert (first.path, first.captions, first.label, first.source) == (
        f"{name}/s/0001.jpg",
        ["a mug of coffee"],
        "7",
        "web",
    )
    assert first.words is not None
    assert first.words[0].text == "hi"
    assert np.array_equal(decode(source[1].image, "x"), PHOTO)
    with pytest.raises(PictureError, match=r"w\.t.*0003: no picture beside txt"):
        source[2]
    assert source[3].image == JPEG
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_rejects_broken_tar_with_path(tmp_path):
    (tmp_path / "w.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"w\.tar: not a readable tar"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_rejects_truncated_or_damaged_tar_with_path(tmp_path, mode):
    make_tar(tmp_path / "whole.tar")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        header = tar.getmembers()[4].offset
    whole = (tmp_path / "whole.tar").read_bytes()
    flipped = bytearray(whole)
    flipped[header + 3] ^= 1
    (tmp_path / "whole.tar").unlink()
    path = tmp_path / ("w.tar" if mode == "w" else "w.tar.gz")
    for data in (whole[:header], whole[: header + 100], whole[: header + 512], bytes(flipped)):
        path.write_bytes(data if mode == "w" else gzip.compress(data))
        with pytest.raises(DataError, match=r"w\.tar[^\n]*(cut off or damaged|not a readable tar)"):
            open_dataset(tmp_path)


def test_reads_own_and_foreign_parquet(tmp_path):
    put(tmp_path / "p", "x/a.jpg", "y/b.jpg")
    with ShardWriter(str(tmp_path / "own")) as writer:
        for sample in open_dataset(tmp_path / "p"):
            writer.write(sample)
    own = open_dataset(tmp_path / "own")
    assert isinstance(own, ShardReader)
    assert list(own) == list(open_dataset(tmp_path / "p"))
    structs = [{"bytes": JPEG, "path": "k.jpg"}, {"bytes": None, "path": "http"}]
    (tmp_path / "foreign").mkdir()
    pd.DataFrame({"image": structs, "label": [3, 4]}).to_parquet(tmp_path / "foreign" / "x.parquet")
    foreign = open_dataset(tmp_path / "foreign")
    assert isinstance(foreign, ParquetDataset)
    assert (foreign[0].path, foreign[0].label, foreign[0].width) == ("00000000/k.jpg", "3", 80)
    with pytest.raises(PictureError, match="http: the row holds no image bytes"):
        foreign[1]
    pd.DataFrame({"image": [JPEG], "caption": ["c"]}).to_parquet(tmp_path / "foreign" / "x.parquet")
    assert open_dataset(tmp_path / "foreign" / "x.parquet")[0].captions == ["c"]
    pd.DataFrame({"text": ["c"]}).to_parquet(tmp_path / "foreign" / "x.parquet")
    with pytest.raises(DataError, match="no column 'image'"):
        open_dataset(tmp_path / "foreign")


def test_reads_zip_and_memory_filesystems(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("cat/1.jpg", "dog/2.jpg"):
            archive.writestr(name, JPEG)
    assert [s.label for s in open_dataset(f"zip://::{tmp_path}/z.zip")] == ["cat", "dog"]
    assert [s.path for s in open_dataset(f"zip://dog::{tmp_path}/z.zip")] == ["2.jpg"]
    memory = fsspec.filesystem("memory")
    memory.pipe({"/test-readers/a.jpg": JPEG, "/test-readers/t.jsonl": b'{"image": "a.jpg", "label": "m"}'})
    source = open_dataset("memory://test-readers")
    assert isinstance(source, TableDataset)
    assert (source[0].path, source[0].label) == ("a.jpg", "m")
    memory.rm("/test-readers", recursive=True)


def test_reads_every_kind_of_file_in_a_zip_archive(tmp_path):
    """A dataset must hold the archive's filesystem, which is not cached and closes the archive once unreferenced."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))
    np.savez(tmp_path / "n.npz", np.stack([PHOTO, PHOTO]))
    pd.DataFrame({"image": [JPEG, JPEG]}).to_parquet(tmp_path / "p.parquet")
    (tmp_path / "t.csv").write_text("image,label\na.jpg,m\nin/b.jpg,n\n")
    put(tmp_path, "a.jpg", "in/b.jpg")
    names = ("t.tar", "n.npz", "p.parquet", "t.csv", "a.jpg", "in/b.jpg")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / name, name)
    for name in names[:4]:
        source = open_dataset(f"zip://{name}::{tmp_path}/z.zip")
        assert [sample.width for sample in source] == [80, 80], name
    assert [sample.label for sample in source] == ["m", "n"]
    memory = fsspec.filesystem("memory")
    memory.pipe({"/t-at-the-root.csv": b"image\na-at-the-root.jpg\n", "/a-at-the-root.jpg": JPEG})
    assert open_dataset("memory://t-at-the-root.csv")[0].width == 80
    for file in ("/t-at-the-root.csv", "/a-at-the-root.jpg"):
        memory.rm(file)


def test_rejects_archive_members_named_like_addresses(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in.jpg::memory://other.jpg", JPEG)
    with pytest.raises(DataError, match=r"holds a file called 'in\.jpg::memory:.*', which is an address; rename it"):
        open_dataset(f"zip://::{tmp_path}/z.zip")
    put(tmp_path / "local", "a::b.jpg", "c::d/e.jpg")
    assert [sample.path for sample in open_dataset(tmp_path / "local")] == ["a::b.jpg", "c::d/e.jpg"]


def test_rejects_missing_empty_and_unsupported_sources(tmp_path):
    for path, reason in [("gone", "no such file"), ("", "no pictures"), ("a.xyz", "expected a folder")]:
        (tmp_path / "a.xyz").write_text("")
        with pytest.raises(DataError, match=reason):
            open_dataset(tmp_path / path)


def test_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PHOTO).save(tmp_path / "r.jpg", exif=exif)
    sample = open_dataset(tmp_path)[0]
    assert (sample.width, sample.height) == (60, 80)


def test_foreign_columns_with_the_same_names_are_ignored(tmp_path):
    frame = pd.DataFrame({"image": [JPEG], "width": [80], "height": [60], "caption": ["a mug"]})
    frame.to_parquet(tmp_path / "x.parquet")
    source = open_dataset(tmp_path)
    assert isinstance(source, ParquetDataset)
    assert source[0].captions == ["a mug"]
    columns = {"words": [["a", "b"]], "faces": [{"bbox": [[1.0, 2.0, 3.0, 4.0]]}], "size": [123456]}
    pd.DataFrame({"image": [JPEG], **columns}).to_parquet(tmp_path / "x.parquet")
    sample = open_dataset(tmp_path)[0]
    assert (sample.words, sample.faces) == (None, None)


def test_broken_parquet_row_group_raises_and_others_stay_readable(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [JPEG] * 4, "caption": [name * 5000 for name in "abcd"]})
    pq.write_table(table, path, row_group_size=2, compression="snappy", use_dictionary=False)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes([255]) * column.total_compressed_size
    path.write_bytes(data)
    source = open_dataset(path)
    with pytest.raises(PictureError, match=r"x\.parquet: row group 0: broken Parquet"):
        source[1]
    assert source[2].captions == ["c" * 5000]


def test_annotation_scan_continues_after_a_broken_row_group(tmp_path):
    put(tmp_path / "in", *(f"{name}.jpg" for name in "abcd"))
    with ShardWriter(str(tmp_path / "own"), row_group_size=2) as writer:
        for sample in open_dataset(tmp_path / "in"):
            writer.write(replace(sample, captions=[sample.path * 5000]))
    path = tmp_path / "own/data-00000.parquet"
    group = pq.read_metadata(path).row_group(0)
    captions = next(group.column(i) for i in range(group.num_columns) if "captions" in group.column(i).path_in_schema)
    data = bytearray(path.read_bytes())
    start = captions.data_page_offset
    data[start : start + captions.total_compressed_size] = bytes([255]) * captions.total_compressed_size
    path.write_bytes(data)
    assert [sample.path for sample in ShardReader(str(path)).annotations()] == ["", "", "c.jpg", "d.jpg"]


def test_broken_json_in_a_tar_drops_one_picture(tmp_path):
    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        for name, data in (("a.jpg", JPEG), ("a.json", b"{broken"), ("b.jpg", JPEG)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_dataset(tmp_path / "w.tar")
    with pytest.raises(PictureError, match=r"a\.jpg\.json: not JSON"):
        source[0]
    assert source[1].image == JPEG


def test_pictures_with_odd_texts_and_names_are_read_and_stored(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / os.fsdecode(b"th\xe9.jpg")).write_bytes(JPEG)
    row = {
        "image": "a.jpg",
        "caption": "[1] half a smile \ud83d",
        "label": 0,
        "source": 5,
        "words": [{"box": [0, 0, 9, 9]}],
    }
    row["words"][0] |= {"score": None, "text": "\ud83d"}
    absolute = {"image": str(tmp_path / "a.jpg"), "captions": "[not json"}
    unknown = {"image": "a.jpg", "captions": [None, "known"]}
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (row, absolute, unknown)))
    first, second, third = open_dataset(tmp_path / "t.jsonl")
    assert (first.captions, first.label, first.source) == (["[1] half a smile \\ud83d"], "0", "5")
    assert (second.captions, third.captions) == (["[not json"], ["known"])
    (tmp_path / "t.jsonl").unlink()
    samples = [first, second, *open_dataset(tmp_path)]
    assert samples[3].path == "th\\udce9.jpg"
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for sample in samples:
            writer.write(sample)
    assert list(open_dataset(tmp_path / "shards")) == samples


def test_csv_cell_can_hold_a_thousand_words(tmp_path):
    put(tmp_path, "a.jpg")
    words = json.dumps([{"box": [0, 0, 9, 9], "text": "word" * 50}] * 1000)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "words"], ["a.jpg", words]])
    found = open_dataset(tmp_path)[0].words
    assert found is not None
    assert len(found) == 1000


def test_rejects_addresses_that_cannot_be_opened(tmp_path):
    for address, reason in (
        ("foo://x", "foo"),
        ("zip://::" + str(tmp_path / "a.jpg"), "cannot be opened"),
        ("", "empty"),
    ):
        put(tmp_path, "a.jpg")
        with pytest.raises(DataError, match=reason):
            open_dataset(address)
    with pytest.raises(DataError, match=r"foo://x/a\.jpg: cannot be opened"):
        load_images(["foo://x/a.jpg"], 16)
    (tmp_path / "t.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match="no pictures there"):
        open_dataset(tmp_path / "t.csv")


def test_rejects_table_rows_with_addresses_instead_of_paths(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    rows = [{"image": "http://somewhere/a.jpg"}, {"image": "zip://a.jpg::b.zip"}, {"image": "a.jpg"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, "t.jsonl"):
        source = open_dataset(place)
        for index in (0, 1):
            with pytest.raises(PictureError, match="an address; a table names its pictures by their paths"):
                source[index]
        assert source[2].path == "a.jpg"


def test_fingerprint_changes_with_the_pictures_but_not_with_other_files(tmp_path):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        writer.write(Sample(image=JPEG, path="a", width=8, height=8))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jpg").write_bytes(JPEG)
    (tmp_path / "table").mkdir()
    (tmp_path / "table/a.jpg").write_bytes(JPEG)
    places = ((tmp_path / "shards", "more.parquet"), (tmp_path / "folder", "b.jpg"), (tmp_path / "table", "t.jsonl"))
    for place, file in places:
        before = fingerprint(place)
        (place / "text_features").mkdir()
        (place / "text_features/part-00000.arrow").write_bytes(b"features")
        (place / "items.jsonl").write_text("{}")
        assert fingerprint(place) == before
        (place / file).write_bytes(JPEG)
        assert fingerprint(place) != before
    assert fingerprint("memory://somewhere") == ""
