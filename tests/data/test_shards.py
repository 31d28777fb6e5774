import json
import pickle

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from skimage import data as skimage_data

from imtok.data.pictures import decode, encode
from imtok.data.sample import SCHEMA, DataError, Face, Sample, TextRegion
from imtok.data.shards import ShardReader, ShardWriter

QUAD = ((1.0, 2.0), (30.0, 3.0), (30.0, 12.0), (1.0, 11.0))
LANDMARKS = ((10.0, 20.0), (30.0, 20.0), (20.0, 30.0), (12.0, 40.0), (28.0, 40.0))
PHOTO = skimage_data.chelsea()[:96, :128]


def make_samples(count: int) -> list[Sample]:
    word = TextRegion(box=(1.0, 2.5, 30.0, 12.0), text="café", quad=QUAD, score=0.75)
    face = Face(box=(0.0, 0.0, 50.0, 60.0), landmarks=LANDMARKS, score=0.5)
    return [
        Sample(
            image=encode(np.roll(PHOTO, row, axis=1), "JPEG"),
            path=f"folder/{row}.jpg",
            width=128,
            height=96,
            words=[None, [], [word, TextRegion(box=(5.0, 5.0, 9.0, 9.0))]][row % 3],
            faces=[[face, Face(box=(1.0, 1.0, 2.0, 2.0))], None][row % 2],
            captions=["a cat", "un chat"][: row % 3],
            label="cat" if row % 2 else None,
            source="skimage",
            cluster=f"c{row}",
        )
        for row in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(str(folder), samples_per_shard=40, row_group_size=8) as writer:
        shard_ended = [writer.write(sample) for sample in make_samples(100)]
    assert [row for row, ended in enumerate(shard_ended) if ended] == [39, 79]
    return folder


def test_samples_can_be_read_in_any_order(folder):
    samples = make_samples(100)
    reader = ShardReader(folder)
    assert [file.name for file in sorted(folder.iterdir())] == [f"data-0000{shard}.parquet" for shard in range(3)]
    assert len(reader) == 100
    assert list(reader) == samples
    for row in np.random.default_rng(0).permutation(100):
        assert reader[int(row)] == samples[row]
    assert reader[-1] == samples[-1]
    assert reader[10:13] == samples[10:13]
    with pytest.raises(IndexError):
        reader[100]


def test_reads_a_file_a_list_of_files_and_after_pickling(folder):
    samples = make_samples(100)
    assert list(ShardReader(folder / "data-00001.parquet")) == samples[40:80]
    two = ShardReader([folder / "data-00002.parquet", str(folder / "data-00000.parquet")])
    assert two[0] == samples[80]
    assert two[20] == samples[0]
    assert pickle.loads(pickle.dumps(two))[21] == samples[1]


def test_annotations_have_everything_but_the_picture(folder):
    scanned = list(ShardReader(folder).annotations())
    for found, sample in zip(scanned, make_samples(100), strict=True):
        assert found.image == b""
        assert (found.path, found.width, found.words, found.faces) == (
            sample.path,
            sample.width,
            sample.words,
            sample.faces,
        )
        assert (found.captions, found.label, found.cluster) == (sample.captions, sample.label, sample.cluster)


def test_row_groups_are_small_and_cached(folder, monkeypatch):
    assert pq.ParquetFile(folder / "data-00000.parquet").metadata.row_group(0).num_rows == 8
    reads = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, *args, **kw: reads.append(args) or original(self, *args, **kw)
    )
    reader = ShardReader(folder, cached_groups=2)
    for row in (0, 1, 9, 7, 15, 0):
        reader[row]
    assert len(reads) == 2
    for row in (16, 0, 8, 16):  # the least recently used group is evicted
        reader[row]
    assert len(reads) == 5


def test_opens_in_pandas(folder):
    frame = pd.read_parquet(folder / "data-00000.parquet")
    assert list(frame.columns) == SCHEMA.names
    assert frame.words[2][0]["text"] == "café"
    assert np.array_equal(decode(frame.image[3]["bytes"], "x"), decode(make_samples(4)[3].image, "x"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opens_in_hugging_face_datasets(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path))
    assert len(rows) == 100
    assert rows[2]["image"].size == (128, 96)
    assert np.array_equal(np.asarray(rows[2]["image"]), decode(make_samples(3)[2].image, "x"))
    assert rows[2]["words"][0]["box"] == [1, 2.5, 30, 12]
    assert rows[2]["faces"][0]["landmarks"][4] == [28, 40]


def test_a_failed_shard_leaves_no_file(tmp_path):
    samples = make_samples(30)

    def write_and_fail():
        with ShardWriter(str(tmp_path), 20, row_group_size=4) as writer:
            for sample in samples:
                writer.write(sample)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert [file.name for file in tmp_path.iterdir()] == ["data-00000.parquet"]
    with ShardWriter(str(tmp_path), 20, first_shard=1) as writer:
        writer.write(samples[20])
    assert list(ShardReader(tmp_path)) == samples[:21]


def test_shards_in_the_memory_filesystem():
    address = "memory://test-shards/inside"
    with ShardWriter(address, 4) as writer:
        for sample in make_samples(6):
            writer.write(sample)
    assert list(ShardReader(address)) == make_samples(6)
    assert ShardReader(f"{address}/data-00001.parquet")[0] == make_samples(5)[4]
    fsspec.filesystem("memory").rm("/test-shards", recursive=True)


def test_rejects_folders_and_files_that_are_not_shards(tmp_path, folder):
    with pytest.raises(DataError, match="no Parquet shards"):
        ShardReader(tmp_path)
    (tmp_path / "data-00000.parquet").write_bytes((folder / "data-00000.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data-00000\.parquet: not a readable Parquet"):
        ShardReader(tmp_path)
    pd.DataFrame({"image": [b"x"], "width": [1]}).to_parquet(tmp_path / "data-00000.parquet")
    with pytest.raises(DataError, match="no column 'height'"):
        ShardReader(tmp_path)
    table = pq.read_table(folder / "data-00000.parquet")
    newer = table.replace_schema_metadata({"imtok": json.dumps({"format_version": 99})})
    pq.write_table(newer, tmp_path / "data-00000.parquet")
    with pytest.raises(DataError, match="format version 99"):
        ShardReader(tmp_path)
