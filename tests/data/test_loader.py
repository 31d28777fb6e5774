"""The loader: batches as a function of the step, slices for ranks, mixing, and handling of words and faces."""

import dataclasses
import io
import json
import logging
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from imtok.config import ConfigError
from imtok.data.loader import Batch, DataConfig, Loader, fixed_batches
from imtok.data.pictures import encode
from imtok.data.readers import open_dataset
from imtok.data.sample import Dataset, Face, Sample, TextRegion
from imtok.data.shards import ShardWriter
from imtok.data.transforms import CropConfig

SMALL = DataConfig(crop=CropConfig(resolution=32))


class Memory(Dataset):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Sample:
        return self.samples[index]


def picture(index: int, words=None, faces=None, **more) -> Sample:
    """A picture of one colour, which encodes its index."""
    pixels = np.full((40, 60, 3), (index % 256, index // 256, 200), np.uint8)
    return Sample(image=encode(pixels), path=f"{index}.png", width=60, height=40, words=words, faces=faces, **more)


def word(x: float = 20.0, text: str = "word") -> TextRegion:
    return TextRegion(box=(x, 15.0, x + 12, 22.0), text=text)


def face(x: float = 30.0) -> Face:
    points = ((x - 3, 18.0), (x + 3, 18.0), (x, 21.0), (x - 2, 24.0), (x + 2, 24.0))
    return Face(box=(x - 6, 12.0, x + 6, 27.0), landmarks=points)


@pytest.fixture(scope="module")
def mixed() -> Memory:
    """60 plain pictures (half of them without annotations at all), then 20 with words and 10 with faces."""
    plain = [picture(i, words=None if i % 2 else [], captions=[f"a{i}", f"b{i}"], label=f"l{i}") for i in range(60)]
    texts = [picture(i, words=[word(10.0), word(30.0)], faces=[]) for i in range(60, 80)]
    return Memory(plain + texts + [picture(i, faces=[face()]) for i in range(80, 90)])


def same(first: Batch, second: Batch) -> bool:
    pairs = [
        (first.images, second.images),
        (first.words.boxes, second.words.boxes),
        (first.words.image_index, second.words.image_index),
        (first.faces.boxes, second.faces.boxes),
        (first.faces.image_index, second.faces.image_index),
        (first.faces.landmarks, second.faces.landmarks),
    ]
    lists = (first.captions, first.labels, first.paths) == (second.captions, second.labels, second.paths)
    return lists and all(torch.equal(a, b) for a, b in pairs)


def test_batch_fields_match_their_pictures(mixed):
    batch = Loader(mixed, SMALL, batch_size=30, region_share=0.5).batch(0)
    assert len(batch) == 30
    assert batch.images.shape == (30, 3, 32, 32)
    for image, path, caption, label in zip(batch.images, batch.paths, batch.captions, batch.labels, strict=True):
        index = int(path.removesuffix(".png"))
        colour = torch.tensor([index / 127.5 - 1, -1.0, 200 / 127.5 - 1])
        torch.testing.assert_close(image, colour[:, None, None].expand(3, 32, 32))
        assert caption in ((f"a{index}", f"b{index}") if index < 60 else (None,))
        assert label == (f"l{index}" if index < 60 else None)
    assert {batch.paths[i] for i in batch.words.image_index} <= {f"{i}.png" for i in range(60, 80)}
    assert {batch.paths[i] for i in batch.faces.image_index} <= {f"{i}.png" for i in range(80, 90)}
    assert len(batch.words) > 5
    assert len(batch.faces) > 2
    assert batch.words.landmarks is None
    for regions in (batch.words, batch.faces):
        assert regions.boxes.min() >= 0
        assert regions.boxes.max() <= 32
    assert batch.faces.landmarks.shape == (len(batch.faces), 5, 2)
    assert batch.faces.landmarks.min() >= 0
    assert batch.faces.landmarks.max() <= 32


def test_batches_depend_only_on_seed_and_step(mixed):
    first, again = (Loader(mixed, SMALL, batch_size=8, region_share=0.5, seed=3) for _ in range(2))
    uninterrupted = dict(first.batches(0, 12))
    assert list(uninterrupted) == list(range(12))
    for step, batch in again.batches(7, 12):  # resumed
        assert same(batch, uninterrupted[step])
    assert same(again.batch(2), uninterrupted[2])  # out of order
    other = Loader(mixed, SMALL, batch_size=8, region_share=0.5, seed=4)
    assert other.batch(0).paths != uninterrupted[0].paths


@pytest.mark.parametrize("share", [None, 0.3])
def test_ranks_see_contiguous_slices_of_the_global_batch(mixed, share):
    single = Loader(mixed, SMALL, batch_size=12, region_share=share)
    ranks = [Loader(mixed, SMALL, batch_size=12, region_share=share, rank=r, world_size=3) for r in range(3)]
    for step in (0, 5):
        whole = single.batch(step)
        for rank, loader in enumerate(ranks):
            assert same(loader.batch(step), whole.part(4 * rank, 4 * (rank + 1)))


def test_worker_threads_do_not_change_batches(mixed):
    loader = Loader(mixed, SMALL, batch_size=6, region_share=0.5)
    threaded = Loader(mixed, dataclasses.replace(SMALL, num_workers=3), batch_size=6, region_share=0.5)
    for (step, batch), (threaded_step, threaded_batch) in zip(
        loader.batches(2, 15), threaded.batches(2, 15), strict=True
    ):
        assert step == threaded_step
        assert same(batch, threaded_batch)
    for step, _ in threaded.batches(4):  # endless, and left early
        if step == 6:
            break


def as_tar(folder: Path, samples: list[Sample]) -> Dataset:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for sample in samples:
            info = tarfile.TarInfo(sample.path)
            info.size = len(sample.image)
            tar.addfile(info, io.BytesIO(sample.image))
    return open_dataset(folder)


def as_shards(folder: Path, samples: list[Sample]) -> Dataset:
    with ShardWriter(str(folder), row_group_size=1) as writer:
        for sample in samples:
            writer.write(sample)
    return open_dataset(folder)


@pytest.mark.parametrize("write", [as_tar, as_shards])
def test_fixed_batches_and_loader_threads_can_share_a_source(tmp_path, monkeypatch, write):
    """A preview reads the same source while the loader's threads read ahead; no two reads may overlap."""
    samples = [picture(i) for i in range(40)]
    source, memory = write(tmp_path, samples), Memory(samples)
    read, lock = type(source).read, threading.Lock()

    def read_slowly(self, index: int) -> Sample:
        assert lock.acquire(blocking=False), "two threads read at a time"
        time.sleep(0.001)
        sample = read(self, index)
        lock.release()
        return sample

    monkeypatch.setattr(type(source), "read", read_slowly)
    (preview,) = fixed_batches(memory, SMALL, count=4, batch_size=4)
    for step, batch in Loader(source, dataclasses.replace(SMALL, num_workers=2), batch_size=4).batches(0, 8):
        assert torch.equal(next(fixed_batches(source, SMALL, count=4, batch_size=4)).images, preview.images)
        assert torch.equal(batch.images, Loader(memory, SMALL, batch_size=4).batch(step).images)


def test_each_epoch_has_every_picture_once_and_new_crops(mixed):
    loader = Loader(mixed, SMALL, batch_size=45)
    epochs = [loader.batch(step).paths for step in range(4)]
    for epoch in (epochs[0] + epochs[1], epochs[2] + epochs[3]):
        assert Counter(epoch) == Counter(sample.path for sample in mixed)
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    single = Memory([Sample(image=encode(photo), path="p", width=60, height=40)])
    images = Loader(single, SMALL, batch_size=2).batch(0).images
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_pictures_with_regions_have_the_configured_share(mixed, share):
    loader = Loader(mixed, SMALL, batch_size=8, region_share=share)
    for step in range(10):
        regional = sum(int(path.removesuffix(".png")) >= 60 for path in loader.batch(step).paths)
        assert regional == round(8 * share)
    counts = Counter(path for step in range(30) for path in loader.batch(step).paths)
    plain = [counts[f"{i}.png"] for i in range(60)]
    regional = [counts[f"{i}.png"] for i in range(60, 90)]
    assert max(plain) - min(plain) <= 1
    assert max(regional) - min(regional) <= 1


def test_region_share_has_no_effect_if_all_pictures_have_regions():
    texts = Memory([picture(i, words=[word()]) for i in range(5)])
    for share in (0.0, 0.5):
        assert len(Loader(texts, SMALL, batch_size=10, region_share=share).batch(0).words) > 5


def test_rejects_region_share_if_no_picture_has_regions():
    box_only = dataclasses.replace(face(), landmarks=None)
    plain = Memory([picture(0), picture(1, faces=[box_only])])
    with pytest.raises(ConfigError, match="no picture has words or faces"):
        Loader(plain, SMALL, batch_size=2, region_share=0.5)
    assert len(Loader(plain, SMALL, batch_size=2, region_share=0.0).batch(0).faces) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 9, "world_size": 2}, "9 pictures cannot be cut into 2"),
        ({"batch_size": 0}, "0 pictures"),
        ({"batch_size": 2, "region_share": 1.5}, "region_share"),
    ],
)
def test_rejects_invalid_settings(mixed, settings, message):
    with pytest.raises(ConfigError, match=message):
        Loader(mixed, SMALL, **settings)
    with pytest.raises(ConfigError, match="drop_regions"):
        DataConfig(drop_regions=1.1)


def test_regions_per_picture_are_capped_by_random_sampling():
    words = [TextRegion(box=(20.0 + x, 10.0 + y, 22.0 + x, 12.0 + y)) for x in range(0, 20, 2) for y in range(0, 20, 2)]
    faces = [face(26.0 + x) for x in range(8)]
    source = Memory([picture(0, words=words, faces=faces)])
    config = DataConfig(crop=CropConfig(resolution=64, scale=(1.0, 1.0)), max_words=5, max_faces=3)
    batch = Loader(source, config, batch_size=20).batch(0)
    assert Counter(batch.words.image_index.tolist()) == dict.fromkeys(range(20), 5)
    assert Counter(batch.faces.image_index.tolist()) == dict.fromkeys(range(20), 3)
    sampled = {tuple(box.tolist()) for box in batch.words.boxes}
    assert len(sampled) > 30  # a different five each time
    none = dataclasses.replace(config, max_words=0, max_faces=0)
    assert len(Loader(source, none, batch_size=2).batch(0).words) == 0


def test_dropped_regions_are_the_same_ones_in_every_epoch():
    words = [TextRegion(box=(20.0 + x, 15.0, 21.5 + x, 20.0)) for x in range(0, 20, 2)]
    source = Memory([picture(i, words=words) for i in range(40)])
    crop = CropConfig(resolution=60, scale=(1.0, 1.0))

    def kept(drop: float, seed: int, step: int) -> set[tuple[str, int]]:
        """Return which words of which pictures are kept; a word is identified by its position in its crop's list."""
        config = DataConfig(crop=crop, max_words=100, drop_regions=drop)
        loader = Loader(source, config, batch_size=40, seed=seed)
        complete = Loader(source, dataclasses.replace(config, drop_regions=0.0), batch_size=40, seed=seed)
        batch, whole = loader.batch(step), complete.batch(step)
        assert torch.equal(batch.images, whole.images)  # the crops are unchanged
        order = {
            (i, tuple(b)): n % 10
            for n, (i, b) in enumerate(zip(whole.words.image_index.tolist(), whole.words.boxes.tolist(), strict=True))
        }
        pairs = zip(batch.words.image_index.tolist(), batch.words.boxes.tolist(), strict=True)
        return {(batch.paths[i], order[i, tuple(box)]) for i, box in pairs}

    half = kept(0.5, seed=0, step=0)
    assert 160 < len(half) < 240
    assert kept(0.5, seed=1, step=3) == half
    assert kept(0.75, seed=0, step=1) < half  # a worse detector finds only words that a better one finds too
    assert kept(1.0, seed=0, step=0) == set()
    assert len(kept(0.0, seed=0, step=0)) == 400


def test_dropped_captions_drop_the_label_and_change_nothing_else(mixed):
    dropping = dataclasses.replace(SMALL, drop_captions=0.3)
    full, dropped = (Loader(mixed, config, batch_size=60, region_share=0.0) for config in (SMALL, dropping))
    pairs = [(full.batch(step), dropped.batch(step)) for step in range(6)]
    shown = [
        (caption, label) for _, batch in pairs for caption, label in zip(batch.captions, batch.labels, strict=True)
    ]
    assert all((caption is None) == (label is None) for caption, label in shown)
    assert sum(caption is None for caption, _ in shown) / len(shown) == pytest.approx(0.3, abs=0.08)
    for expected, batch in pairs:
        assert torch.equal(expected.images, batch.images)
        assert all(caption in (other, None) for caption, other in zip(batch.captions, expected.captions, strict=True))
    assert pairs[0][1].captions != pairs[1][1].captions  # the same pictures, of which others lose their captions
    expected, dropped = (next(fixed_batches(mixed, c, count=60, batch_size=60)) for c in (SMALL, dropping))
    assert (dropped.captions, dropped.labels) == (expected.captions, expected.labels)


def test_unreadable_pictures_are_replaced_and_logged(caplog):
    broken = dataclasses.replace(picture(3), image=picture(3).image[:60])
    resized = dataclasses.replace(picture(5), width=61)
    samples = [broken if i == 3 else resized if i == 5 else picture(i) for i in range(8)]
    with caplog.at_level(logging.WARNING):
        loader = Loader(Memory(samples), SMALL, batch_size=8)
        batches = [loader.batch(step) for step in range(2)]
    for batch in batches:
        assert len(batch) == 8
        assert set(batch.paths) == {f"{i}.png" for i in range(8)} - {"3.png", "5.png"}
    assert sorted(message.split(":")[1].strip() for message in caplog.messages) == ["3.png", "5.png"]
    with pytest.raises(ValueError, match="none of the pictures"):
        Loader(Memory([broken]), SMALL, batch_size=1).batch(0)


def test_fixed_batches_are_centre_crops_spread_over_the_data(mixed):
    batches = list(fixed_batches(mixed, SMALL, count=20, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    indices = [int(path.removesuffix(".png")) for batch in batches for path in batch.paths]
    assert indices == sorted(set(indices))
    assert indices[-1] > 80
    again = list(fixed_batches(mixed, SMALL, count=20, batch_size=8))
    assert all(same(a, b) for a, b in zip(batches, again, strict=True))
    boxes = batches[-1].faces.boxes
    expected = torch.tensor([14.0, 12, 26, 27]) * 32 / 40  # 40 x 40 pixels from x = 10 on, onto 32 x 32
    torch.testing.assert_close(boxes, expected.expand_as(boxes))
    assert sum(map(len, fixed_batches(mixed, SMALL, count=1000, batch_size=64))) == 90


def test_fixed_batches_skip_to_the_next_readable_picture(mixed):
    broken = [dataclasses.replace(picture(i), image=b"no picture") for i in range(12)]
    samples = [picture(i) if i in (2, 4, 10, 11) else broken[i] for i in range(12)]
    (batch,) = fixed_batches(Memory(samples), SMALL, count=4, batch_size=8)  # from rows 0, 3, 6 and 9 on
    assert batch.paths == ["2.png", "4.png", "10.png"]
    assert list(fixed_batches(Memory(broken), SMALL, count=4, batch_size=8)) == []


def test_shards_and_folders_load_alike(tmp_path, mixed):
    with ShardWriter(str(tmp_path / "shards"), samples_per_shard=40, row_group_size=8) as writer:
        for sample in mixed:
            writer.write(sample)
    from_shards = Loader(str(tmp_path / "shards"), SMALL, batch_size=10, region_share=0.4).batch(3)
    assert same(from_shards, Loader(mixed, SMALL, batch_size=10, region_share=0.4).batch(3))

    folder = tmp_path / "folder"
    folder.mkdir()
    rows = []
    for sample in mixed.samples[55:65]:
        (folder / sample.path).write_bytes(sample.image)
        rows.append({"image": sample.path, "words": [{"box": word.box} for word in sample.words or []]})
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    batch = Loader(folder, SMALL, batch_size=4, region_share=0.5).batch(0)
    assert set(batch.words.image_index.tolist()) <= {i for i in range(4) if int(batch.paths[i][:-4]) >= 60}
    assert len(batch.words) > 0
