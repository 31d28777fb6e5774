import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as skimage_data

from imtok.data import annotate as module
from imtok.data.annotate import FACE_DETECTOR, TEXT_DETECTOR, Annotator, annotate, annotate_source
from imtok.data.filling import check_finished
from imtok.data.filters import KeepRules
from imtok.data.pictures import decode, encode
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError, Sample
from imtok.data.shards import ShardReader
from imtok.data.synthetic import SyntheticPictures
from imtok.data.text_features import embed
from imtok.tokenizers.encode import encode_pictures

PHOTO = skimage_data.coffee()[:120, :160]


class FakeText:
    """Outputs the mean brightness as a word, plus a word of low score, one outside the picture, and a blank one."""

    def detect(self, image):
        def word(x: float, text: str, score: float):
            quad = np.array([[x, 5], [x + 30, 8], [x + 30, 20], [x, 17]], float)
            return SimpleNamespace(quad=quad, text=text, score=score)

        words = [word(-10, f"{image.mean():.3f}", 0.9), word(60, "doubtful", 0.3), word(9000, "outside", 1.0)]
        return [SimpleNamespace(words=words), SimpleNamespace(words=[word(50, " ", 0.9)])]


class FakeFaces:
    """Outputs one face of low score, preceded by one of high score if the picture is bright."""

    def detect(self, image):
        bright = image.mean() > 100
        boxes = np.array([[10, 10, 60, 500], [20, 20, 30, 30]], float)[: 1 + bright]
        landmarks = np.array([[[20, 30], [40, 30], [30, 40], [22, 50], [38, 50]]] * 2, float)[: 1 + bright]
        scores = np.array([0.95, 0.5] if bright else [0.5])
        return SimpleNamespace(boxes=boxes, landmarks=landmarks, scores=scores)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    fakes = {TEXT_DETECTOR: FakeText, FACE_DETECTOR: FakeFaces}
    monkeypatch.setattr(module, "pretrained", SimpleNamespace(load=lambda name: fakes[name]()))


def make_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for row in range(count):
        picture = np.full((40, 60, 3), 20 * row % 256, np.uint8)
        (folder / f"{row:03d}.png").write_bytes(encode(picture) if row % 5 else b"broken")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if not file.name.endswith(".partial")}


def skipped_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_writes_detected_words_and_faces(tmp_path):
    make_pictures(tmp_path / "in", 12)
    done = annotate(str(tmp_path / "in"), str(tmp_path / "out"), text=True, faces=True, captions=None)
    assert (done.rows, done.kept, done.skipped, done.dropped) == (12, 9, 3, 0)
    samples = list(ShardReader(tmp_path / "out"))
    assert [sample.path for sample in samples] == [f"{row:03d}.png" for row in range(12) if row % 5]
    for row, sample in zip([row for row in range(12) if row % 5], samples, strict=True):
        assert sample.image == (tmp_path / "in" / sample.path).read_bytes()
        assert sample.words is not None
        assert sample.faces is not None
        (word,) = sample.words
        assert (word.text, word.box) == (f"{20 * row:.3f}", (0, 5, 20, 20))  # clipped to the picture
        assert word.quad == ((-10, 5), (20, 8), (20, 20), (-10, 17))
        assert word.score == pytest.approx(0.9)
        assert [face.box for face in sample.faces] == ([(10, 10, 60, 40)] if 20 * row > 100 else [])
        assert all(face.landmarks and face.landmarks[2] == (30, 40) for face in sample.faces)
    assert [entry["row"] for entry in skipped_rows(tmp_path / "out")] == [0, 5, 10]
    assert skipped_rows(tmp_path / "out")[1]["reason"].startswith("005.png: not a picture")


def test_existing_annotations_stay_unless_detected_anew(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(PHOTO))
    row = {"image": "a.png", "words": [{"box": [1, 2, 3, 4], "text": "kept"}], "label": "cup", "faces": []}
    (tmp_path / "in" / "t.jsonl").write_text(json.dumps(row))
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), faces=True, captions="a photo of a {label}")
    (sample,) = ShardReader(tmp_path / "out")
    assert sample.words is not None
    assert sample.words[0].text == "kept"
    assert sample.faces is not None
    assert sample.captions == ["a photo of a cup"]
    annotate(str(tmp_path / "in"), str(tmp_path / "lax"), text=True, min_text_score=0.2)
    (sample,) = ShardReader(tmp_path / "lax")
    assert [word.text for word in sample.words or []] == [f"{PHOTO.mean():.3f}", "doubtful"]


def test_keep_rules_drop_pictures(tmp_path):
    make_pictures(tmp_path / "in", 12)
    done = annotate(str(tmp_path / "in"), str(tmp_path / "out"), faces=True, keep=("face", "min_side=30"))
    assert (done.kept, done.dropped, done.skipped) == (5, 4, 3)
    assert [sample.path for sample in ShardReader(tmp_path / "out")] == [f"{row:03d}.png" for row in (6, 7, 8, 9, 11)]
    with pytest.raises(DataError, match="add --text"):
        annotate(str(tmp_path / "in"), str(tmp_path / "other"), keep=("text",))


def test_detector_and_captioner_failures_are_reported_per_picture(tmp_path):
    class Fails:
        def detect(self, image):
            if image.mean() == 40:
                raise RuntimeError("no such kernel\nand a trace")
            return []

    def captioner(sample: Sample) -> list[str]:
        if sample.path == "003.png":
            raise RuntimeError("out of memory")
        return ["a picture"]

    make_pictures(tmp_path / "in", 4)
    source = open_dataset(str(tmp_path / "in"))
    annotator = Annotator(text_detector=Fails(), captioner=captioner)
    annotate_source(source, str(tmp_path / "out"), annotator, KeepRules(()), {})
    assert [entry["reason"] for entry in skipped_rows(tmp_path / "out")][1:] == [
        "002.png: the text detector failed (no such kernel)",
        "003.png: the captioner failed (out of memory)",
    ]


def test_persistent_or_memory_errors_stop_the_run_and_drop_no_picture(tmp_path):
    class Breaks:
        def __init__(self, after: int, error: Exception) -> None:
            self.calls, self.after, self.error = 0, after, error

        def detect(self, image):
            self.calls += 1
            if self.calls > self.after:
                raise self.error
            return []

    make_pictures(tmp_path / "in", 50)
    source = open_dataset(str(tmp_path / "in"))
    no_gpu_memory = torch.OutOfMemoryError("no memory")
    no_host_memory = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    for name, error in {"kernel": RuntimeError("no kernel"), "gpu": no_gpu_memory, "host": no_host_memory}.items():
        out = str(tmp_path / name)
        with pytest.raises(DataError, match=r"\d\.png: the text detector (failed|ran out)"):
            annotate_source(source, out, Annotator(text_detector=Breaks(11, error)), KeepRules(()), {}, 4)
        assert annotate_source(source, out, Annotator(text_detector=FakeText()), KeepRules(()), {}, 4).kept == 40
        assert [entry["row"] for entry in skipped_rows(tmp_path / name)] == list(range(0, 50, 5))


def test_rejects_torchrun(tmp_path, monkeypatch):
    make_pictures(tmp_path / "in", 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="call it once, without torchrun"):
        annotate(str(tmp_path / "in"), str(tmp_path / "out"))
    with pytest.raises(DataError, match="call it once, without torchrun"):
        embed(str(tmp_path / "in"), "text_encoder/minilm")
    with pytest.raises(DataError, match="call it once, without torchrun"):
        encode_pictures("vqgan-nano", tmp_path / "in", tmp_path / "out", 32)
    assert not (tmp_path / "out").exists()


def test_settings_of_a_failed_first_call_can_be_corrected(tmp_path):
    make_pictures(tmp_path / "in", 12)
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    with pytest.raises(DataError, match="add --text"):
        annotate(source, out, keep=("text",))
    assert annotate(source, out, text=True, keep=("text",)).kept == 9
    with pytest.raises(DataError, match="begun with"):
        annotate(source, out)


def test_raises_if_no_picture_is_readable(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 pictures could be read; first: .*a\.jpg: empty file"):
        annotate(str(tmp_path / "in"), str(tmp_path / "out"))


def test_resumes_after_a_kill_at_any_file_operation(tmp_path, monkeypatch):
    # At every file operation the folder is copied as a kill at that moment would leave it; each copy must resume to
    # the files of the uninterrupted run.
    make_pictures(tmp_path / "in", 14)
    settings = {"text": True, "keep": ("text",), "samples_per_shard": 3}
    moments: list[Path] = []
    filesystem = type(fsspec.filesystem("file"))

    def watched(name: str):
        original = getattr(filesystem, name)

        def operation(self, *args, **options):
            moments.append(tmp_path / f"moment{len(moments)}")
            shutil.copytree(tmp_path / "out", moments[-1])
            return original(self, *args, **options)

        return operation

    with monkeypatch.context() as patch:
        for name in ("mv", "pipe_file"):
            patch.setattr(filesystem, name, watched(name))
        annotate(str(tmp_path / "in"), str(tmp_path / "out"), **settings)
    expected = contents(tmp_path / "out")
    assert len(expected) == 4 + 2
    assert len(moments) > 20
    for moment in moments:
        annotate(str(tmp_path / "in"), str(moment), **settings)
        assert contents(moment) == expected, moment


CHILD = """
import sys, time
from types import SimpleNamespace
from imtok.data import annotate as module

class Slow:
    pictures = 0

    def detect(self, image):
        self.pictures += 1
        time.sleep(600 if self.pictures == 50 and "wait" in sys.argv else 0.01)
        quad = [[1, 2], [30, 2], [30, 9], [1, 9]]
        return [SimpleNamespace(words=[SimpleNamespace(quad=quad, text=str(image.sum()), score=0.9)])]

module.pretrained.load = lambda name: Slow()
module.annotate(sys.argv[1], sys.argv[2], text=True, samples_per_shard=7)
"""


def test_sigkill_and_resume(tmp_path):
    make_pictures(tmp_path / "in", 100)
    run = [sys.executable, "-c", CHILD, str(tmp_path / "in"), str(tmp_path / "out")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*run, "wait"], **quiet) as child:
        while not (tmp_path / "out" / "data-00003.parquet").exists():
            assert child.poll() is None
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert 0 < json.loads((tmp_path / "out" / "progress.json").read_text())["next_row"] < 100
    with pytest.raises(DataError, match=r"out: \d+ of 100 pictures are done"):
        check_finished(tmp_path / "out")
    subprocess.run(run, check=True, **quiet)
    check_finished(tmp_path / "out")
    subprocess.run([*run[:-1], str(tmp_path / "whole")], check=True, **quiet)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(ShardReader(tmp_path / "out")) == 80


def test_finished_run_is_kept_and_other_settings_or_files_are_rejected(tmp_path):
    make_pictures(tmp_path / "in", 6)
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    annotate(source, out, text=True)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert annotate(source, out, text=True).kept == 4
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")} == before
    with pytest.raises(DataError, match="begun with faces = False, now it is True"):
        annotate(source, out, text=True, faces=True)
    same = (tmp_path / "in" / "003.png").read_bytes()
    (tmp_path / "in" / "003.png").write_bytes(same + b" ")
    with pytest.raises(DataError, match="out: begun with other pictures, or other files of them"):
        annotate(source, out, text=True)
    (tmp_path / "in" / "003.png").write_bytes(same)
    with pytest.raises(DataError, match="begun with faces = False, now it is True"):
        annotate(source, out, text=True, faces=True)
    (tmp_path / "in" / "new.png").write_bytes(encode(PHOTO))
    with pytest.raises(DataError, match="begun with pictures = 6, now it is 7"):
        annotate(source, out, text=True)
    (tmp_path / "out" / "progress.json").unlink()
    with pytest.raises(DataError, match="holds shards of something else"):
        annotate(source, out, text=True)


def test_rejects_captions_file_that_changed_since_the_run_began(tmp_path):
    make_pictures(tmp_path / "in", 2)
    table, source, out = tmp_path / "captions.csv", str(tmp_path / "in"), str(tmp_path / "out")
    table.write_text("image,caption\n000.png,a dog\n")
    for _ in range(2):
        annotate(source, out, captions=str(table))
    table.write_text("image,caption\n000.png,a young dog\n")
    with pytest.raises(DataError, match="begun with captions_fingerprint"):
        annotate(source, out, captions=str(table))


def test_broken_symlink_is_skipped_as_unreadable(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/000.png").write_bytes(encode(PHOTO))
    (tmp_path / "in/001.png").symlink_to(tmp_path / "nowhere.png")
    done = annotate(str(tmp_path / "in"), str(tmp_path / "out"))
    assert (done.kept, done.skipped) == (1, 1)


def save(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


REAL_BOMB = save(Image.new("1", (20_000, 4_000)), "PNG")


def hostile(rng: random.Random) -> tuple[str, bytes, bool]:
    """Return a kind of file, its bytes, and whether it must be read as a picture."""
    photo = Image.fromarray(PHOTO).resize((rng.randrange(40, 160), rng.randrange(40, 120)))
    whole = save(photo, rng.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    exif = Image.Exif()
    exif[274] = rng.randrange(9)

    def flip_a_byte() -> bytes:
        data = bytearray(save(photo, "PNG"))
        data[len(data) // 2] ^= 0xFF
        return bytes(data)

    def wrong_size_in_header() -> bytes:
        data = bytearray(save(Image.new("1", (16, 16)), "PNG"))
        data[16:24] = rng.choice([10_000, 50_000, 2**31 - 1]).to_bytes(4, "big") * 2
        return bytes(data)

    unreadable = {
        "truncated": lambda: whole[: rng.randrange(20, int(len(whole) * 0.9))],
        "bomb": wrong_size_in_header,
        "real-bomb": lambda: REAL_BOMB,
        "text": lambda: b"Dear reader, this is no picture." * rng.randrange(1, 50),
        "html": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "zero": lambda: b"",
        "noise": lambda: rng.randbytes(rng.randrange(1, 5000)),
        "header": lambda: save(photo, "JPEG")[: rng.randrange(1, 20)],
        "flipped": flip_a_byte,
        "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n",
        "pickle": lambda: b"\x80\x04cos\nsystem\n(S'false'\ntR.",
        "one-pixel": lambda: save(Image.new("RGB", (1, 1)), rng.choice(["PNG", "JPEG", "GIF"])),
        "line": lambda: save(Image.new("RGB", (1, rng.randrange(9, 900))), "PNG"),
        "float": lambda: save(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"),
    }
    readable = {
        "cmyk": lambda: save(photo.convert("CMYK"), "JPEG"),
        "sixteen": lambda: save(Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 257), "PNG"),
        "alpha": lambda: save(photo.convert("RGBA"), "PNG"),
        "gray-alpha": lambda: save(photo.convert("LA"), "PNG"),
        "palette": lambda: save(photo.convert("P"), "PNG", transparency=rng.randrange(256)),
        "exif": lambda: save(photo, "JPEG", exif=exif),
        "bad-exif": lambda: save(photo, "JPEG", exif=b"Exif\0\0" + rng.randbytes(60)),
        "misnamed": lambda: whole,
        "bilevel": lambda: save(photo.convert("1"), "PNG"),
        "trailing": lambda: save(photo, "JPEG") + rng.randbytes(500),
        "progressive": lambda: save(photo, "JPEG", progressive=True),
        "long": lambda: save(photo.resize((20_000, 8)), "PNG"),
    }
    kind = rng.choice([*unreadable, *readable])
    return kind, (unreadable | readable)[kind](), kind in readable


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_200_hostile_files_are_read_or_reported_as_skipped(tmp_path, container):
    rng = random.Random(7)
    readable = {}
    (tmp_path / "in").mkdir()
    for row in range(200):
        kind, data, is_readable = hostile(rng)
        name = f"{row:03d}-{kind}.{rng.choice(['jpg', 'png', 'webp'])}"
        (tmp_path / "in" / name).write_bytes(data)
        readable[name] = is_readable
    source = str(tmp_path / "in")
    if container == "zip":
        source = f"zip://::{shutil.make_archive(str(tmp_path / 'in'), 'zip', tmp_path / 'in')}"
    done = annotate(source, str(tmp_path / "out"), text=True, faces=True)
    read = {sample.path: sample for sample in ShardReader(tmp_path / "out")}
    skipped = [entry["reason"] for entry in skipped_rows(tmp_path / "out")]
    assert len(read) + len(skipped) == done.rows == 200
    assert {name for name in readable if any(f"{name}: " in reason for reason in skipped)} | set(read) == set(readable)
    assert all("\n" not in reason for reason in skipped)
    assert {name for name, is_readable in readable.items() if is_readable} == set(read)
    for path, sample in read.items():
        assert decode(sample.image, path).shape[:2] == (sample.height, sample.width)
        if "-cmyk" in path or "-trailing" in path:
            resized = Image.fromarray(decode(sample.image, path)).resize((160, 120))
            assert np.abs(np.asarray(resized, float) - PHOTO).mean() < 25


def test_real_detectors_find_words_on_signs_and_a_face(tmp_path, monkeypatch, needs):
    real = {TEXT_DETECTOR: needs(TEXT_DETECTOR), FACE_DETECTOR: needs(FACE_DETECTOR)}
    monkeypatch.setattr(module, "pretrained", SimpleNamespace(load=lambda name: real[name]))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "astronaut.png").write_bytes(encode(skimage_data.astronaut()))
    signs = list(SyntheticPictures(10, seed=3, size=256, word_height=(40.0, 60.0)))
    for row, sign in enumerate(signs):
        (tmp_path / "in" / f"sign{row}.jpg").write_bytes(sign.image)
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), text=True, faces=True)
    portrait, *found = ShardReader(tmp_path / "out")
    assert portrait.faces is not None
    (face,) = portrait.faces
    left_eye, right_eye, nose, *_ = face.landmark_array()
    assert np.hypot(*(left_eye - (202, 102))) < 12
    assert np.hypot(*(right_eye - (247, 101))) < 12
    assert left_eye[0] < nose[0] < right_eye[0]
    recognized = [{word.text.casefold() for word in sample.words or []} for sample in found]
    expected = [{word.text.casefold() for word in sign.words or []} for sign in signs]
    assert sum(bool(words & seen) for words, seen in zip(expected, recognized, strict=True)) >= 7
    assert all(not sample.faces for sample in found)
