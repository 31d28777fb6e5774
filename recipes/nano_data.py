"""The pictures of the nano recipes: annotated, split by content, and cut into close-ups for the test.

A picture and its near-duplicates, other crops of it, and other pictures of the same person, receipt or document share a
`cluster` in the source's table. All pictures of a cluster go the same way, whichever folder they lie in, by a hash of
the cluster alone; pictures without one go by their path. `nano_test_clusters.txt` lists the test clusters of the
pictures that the shipped weights were made from.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from imtok.data.annotate import annotate
from imtok.data.closeups import close_ups
from imtok.data.pictures import decode, encode
from imtok.data.plain_signs import PlainSigns
from imtok.data.readers import open_dataset
from imtok.data.sample import Dataset, Face, InMemoryDataset, Sample, TextRegion
from imtok.data.shards import ShardWriter
from imtok.data.synthetic import SyntheticPictures
from imtok.data.transforms import CropConfig, centre_crop

SIGNS, TEST_SIGNS = 3000, 300
PLAIN_SIGNS = 16_000
SAID = ("shop", "animal", "food")
"""Kinds of words on plain signs: 118 of up to five letters, and 33 that no training sign says. Such signs say them at
one place and in one typeface, so that a caption tells all but the shade, and small models can learn it."""
plain_signs = partial(PlainSigns, labels=SAID, steady=True)
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.03
CLOSE_UPS = 6
"""Of one picture, at most."""

CAPTION = "a photo of a {label}"

Split = Literal["train", "validation", "test"]


def signs() -> tuple[Dataset, dict[str, Dataset]]:
    """Rendered signs for the training, and for the test by name: with words and typefaces of their own."""
    return SyntheticPictures(SIGNS, seed=1), {"signs": SyntheticPictures(TEST_SIGNS, seed=2, split="test")}


def prepare(
    text: Iterable[str],
    faces: Iterable[str],
    plain: Iterable[str],
    out: Path,
    crop: CropConfig,
    rendered: tuple[Dataset, Mapping[str, Dataset]] | None = None,
) -> Path:
    """Annotate and split; what is there already stays. Also writes `test_clusters.txt`.

    Pictures with a class and no caption get one from it.

    Args:
        text: pictures with words (anything that imtok reads); of pictures of one name the first is tested on.
        faces: pictures with faces.
        plain: other pictures.
        out: working folder.
        crop: how large words and faces in the test's close-ups are, and the resolution.
        rendered: pictures for the training and, by name, for tests, such as `signs()`.

    Returns:
        The folder of shards: `train`, `validation`, and `test/words`, `test/faces`, `test/plain` and what is rendered.
    """
    shards = out / "shards"
    if not (shards / "complete").exists():
        places = {"words": list(text), "faces": list(faces), "plain": list(plain)}
        kinds = {kind: [annotated(out, kind, *one) for one in enumerate(each)] for kind, each in places.items()}
        shutil.rmtree(shards, ignore_errors=True)
        training, tests = rendered or (InMemoryDataset(()), {})
        write_training(kinds, shards, training)
        for kind, folders in kinds.items():
            write_test(kind, folders, shards / "test" / kind, crop)
        for name, source in tests.items():
            with ShardWriter(str(shards / "test" / name)) as writer:
                for sample in source:
                    writer.write(sample)
        clusters = {sample.cluster for sample in pictures(kinds) if sample.cluster and split_of(sample) == "test"}
        (out / "test_clusters.txt").write_text("".join(f"{cluster}\n" for cluster in sorted(clusters)))
        (shards / "complete").touch()
    return shards


def annotated(out: Path, kind: str, number: int, source: str) -> Path:
    """Find in a source what it is there for, once; a folder that was begun is finished."""
    folder = out / "annotated" / f"{kind}-{number}-{Path(source).name}"
    annotate(source, str(folder), text=kind == "words", faces=kind == "faces", captions=CAPTION)
    return folder


def write_training(kinds: dict[str, list[Path]], out: Path, rendered: Dataset) -> None:
    """Training and validation shards of all kinds, then the rendered pictures."""
    with ShardWriter(str(out / "train")) as training, ShardWriter(str(out / "validation")) as validation:
        for sample in pictures(kinds):
            if split_of(sample) != "test":
                (training if split_of(sample) == "train" else validation).write(sample)
        for sample in rendered:
            training.write(sample)


def write_test(kind: str, folders: list[Path], out: Path, crop: CropConfig) -> None:
    """Close-ups of the words and faces of the test pictures; the middle of plain ones and of faces that fill theirs."""
    seen: set[str] = set()
    with ShardWriter(str(out)) as writer:
        for sample in pictures({kind: folders}):
            if split_of(sample) != "test" or sample.path in seen:
                continue
            seen.add(sample.path)
            squares = list(close_ups(sample, crop, CLOSE_UPS, is_clear))
            if not squares and kind != "words":
                squares = [middle(sample, crop)]
            for square in squares:
                writer.write(square)


def middle(sample: Sample, config: CropConfig) -> Sample:
    """The picture's largest centred square, with the faces that it shows."""
    crop = centre_crop(sample.width, sample.height, config.resolution)
    pixels = crop.pixels(decode(sample.image, sample.path))
    return Sample(
        image=encode(pixels),
        path=sample.path,
        width=config.resolution,
        height=config.resolution,
        faces=None if sample.faces is None else list(crop.faces(sample.faces)),
        captions=sample.captions,
        label=sample.label,
        source=sample.source,
        cluster=sample.cluster,
    )


def is_clear(region: TextRegion | Face) -> bool:
    """Whether a word is one to test on: two letters or digits at least, and read with confidence. Every face is."""
    if isinstance(region, Face):
        return True
    return region.score >= 0.9 and sum(c.isalnum() for c in region.text) >= 2


def pictures(kinds: dict[str, list[Path]]) -> Iterator[Sample]:
    """All annotated pictures, kind by kind."""
    for folder in (folder for folders in kinds.values() for folder in folders):
        yield from open_dataset(str(folder))


def split_of(sample: Sample) -> Split:
    """By a hash of the picture's cluster, or of its path where it has none."""
    return split_of_cluster(sample.cluster or sample.path)


def split_of_cluster(cluster: str) -> Split:
    """The split that all pictures of a cluster belong to."""
    place = int.from_bytes(hashlib.sha256(f"nano {cluster}".encode()).digest()[:4], "big") / 2**32
    return "test" if place < TEST_SHARE else "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"
