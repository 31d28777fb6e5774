"""Prepare the pictures of the nano recipes: annotate them, split them by content, and crop close-ups for the test.

A picture and its near-duplicates, other crops of it, and other pictures of the same person, receipt or document share a
`cluster` in the source's table. All pictures of a cluster belong to the same split, whichever folder they are in: the
split follows from a hash of the cluster alone, or of the path for pictures without a cluster. `nano_test_clusters.txt`
lists the test clusters of the pictures that the shipped weights were made from.
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
SIGN_LABELS = ("shop", "animal", "food")
"""Kinds of words on plain signs: 118 words of up to five letters, and 33 words that no training sign shows. The signs
show them at one position and in one typeface, so that a caption determines everything but the shade, which is easy
enough for small models to learn."""
plain_signs = partial(PlainSigns, labels=SIGN_LABELS, steady=True)
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.03
CLOSE_UPS = 6
"""Largest number of close-ups of one picture."""

CAPTION = "a photo of a {label}"

Split = Literal["train", "validation", "test"]


def signs() -> tuple[Dataset, dict[str, Dataset]]:
    """Return rendered signs for training, and test sets of signs by name, with other words and typefaces."""
    return SyntheticPictures(SIGNS, seed=1), {"signs": SyntheticPictures(TEST_SIGNS, seed=2, split="test")}


def prepare(
    text: Iterable[str],
    faces: Iterable[str],
    plain: Iterable[str],
    out: Path,
    crop: CropConfig,
    rendered: tuple[Dataset, Mapping[str, Dataset]] | None = None,
) -> Path:
    """Annotate and split pictures; finished shards are kept. Also write `test_clusters.txt`.

    Pictures with a class and without a caption get a caption from their class.

    Args:
        text: sources of pictures with words, in any format that imtok reads; of test pictures with the same path, only
            the first is used.
        faces: sources of pictures with faces.
        plain: sources of other pictures.
        out: working folder.
        crop: resolution and the size of words and faces in the close-ups of the test sets.
        rendered: pictures for training and, by name, for test sets, such as `signs()`.

    Returns:
        The folder of shards: `train`, `validation`, `test/words`, `test/faces`, `test/plain`, and under `test` the
        rendered sets by name.
    """
    shards = out / "shards"
    if not (shards / "complete").exists():
        sources = {"words": list(text), "faces": list(faces), "plain": list(plain)}
        kinds = {kind: [annotated(out, kind, *item) for item in enumerate(each)] for kind, each in sources.items()}
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
    """Annotate a source with words or faces, according to its kind; an unfinished folder is completed."""
    folder = out / "annotated" / f"{kind}-{number}-{Path(source).name}"
    annotate(source, str(folder), text=kind == "words", faces=kind == "faces", captions=CAPTION)
    return folder


def write_training(kinds: dict[str, list[Path]], out: Path, rendered: Dataset) -> None:
    """Write training and validation shards of all kinds; the rendered pictures follow in the training shards."""
    with ShardWriter(str(out / "train")) as training, ShardWriter(str(out / "validation")) as validation:
        for sample in pictures(kinds):
            if split_of(sample) != "test":
                (training if split_of(sample) == "train" else validation).write(sample)
        for sample in rendered:
            training.write(sample)


def write_test(kind: str, folders: list[Path], out: Path, crop: CropConfig) -> None:
    """Write close-ups of words and faces in test pictures; without any, the centre crop unless the kind is `words`."""
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
    """Return the largest centred square of a picture, with the faces in it."""
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
    """Return whether to test on a region: a face, or a confidently read word of at least two letters or digits."""
    if isinstance(region, Face):
        return True
    return region.score >= 0.9 and sum(c.isalnum() for c in region.text) >= 2


def pictures(kinds: dict[str, list[Path]]) -> Iterator[Sample]:
    """Iterate over all annotated pictures, kind by kind."""
    for folder in (folder for folders in kinds.values() for folder in folders):
        yield from open_dataset(str(folder))


def split_of(sample: Sample) -> Split:
    """Return the split of a picture by a hash of its cluster, or of its path if it has none."""
    return split_of_cluster(sample.cluster or sample.path)


def split_of_cluster(cluster: str) -> Split:
    """Return the split that all pictures of a cluster belong to."""
    position = int.from_bytes(hashlib.sha256(f"nano {cluster}".encode()).digest()[:4], "big") / 2**32
    return "test" if position < TEST_SHARE else "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"
