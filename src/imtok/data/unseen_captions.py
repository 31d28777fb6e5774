"""Lists of captions of each class that no training picture has.

A text-conditioned tokenizer's decoder is given one of them when pictures are generated from their class alone (TexTok,
sections 3.2 and 4.1).

    SHARDS/unseen_captions/manifest.json    how the lists were made
    SHARDS/unseen_captions/HASH.json        one class: {"label": …, "captions": […]}

A class is written under a temporary name and renamed, so that an interruption loses at most one class.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imtok.config import FORMAT_VERSION
from imtok.data.addresses import join, list_files, locate, read_json, write_text
from imtok.data.captions import captions_fingerprint, split_word_limit
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError
from imtok.pretrained.writer import load_writer

FOLDER = "unseen_captions"
_TRIES = 4
"""Maximum number of attempts per wanted caption; captions that already exist are discarded."""

Inventor = Callable[[str, Sequence[str], int], str | None]
"""Maps a class, some of its captions and a seed to a new caption; None if there are no more."""


def write_unseen_captions(data: str, source: str, per_class: int = 50, references: int = 8, seed: int = 0) -> str:
    """Write a list of new captions for every class of some shards.

    Existing lists are kept, unless a picture has one of their captions.

    Args:
        data: a folder of shards with labels and captions.
        source: the folder of a causal language model in transformers' layout, which is prompted with captions of the
            class and writes up to 75 words (25 for FOLDER:25); or shards with labels and captions of other pictures,
            such as held-out ones, from which captions are taken.
        per_class: number of captions per class.
        references: number of random captions of the class in the language model's prompt, redrawn for each new caption.
        seed: random seed of the captions.

    Returns:
        The folder of lists.

    Raises:
        DataError: a number is out of range, no picture has both label and caption, a class gets no new caption, or the
            folder was begun with other settings.
        ConfigError: `source` holds neither a language model nor shards.
    """
    if per_class < 1 or references < 1 or seed < 0:
        raise DataError("per_class and references must be at least 1, and seed must not be negative")
    known = captions_by_class(data)
    if not known:
        raise DataError(f"{data}: no picture has both a label and a caption; imtok annotate --captions gives captions")
    folder = join(data, FOLDER)
    settings = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "per_class": per_class,
        "references": references,
        "seed": seed,
    }
    if source_hash := captions_fingerprint(source):
        settings["fingerprint"] = source_hash
    manifest = join(folder, "manifest.json")
    if (begun := read_json(manifest)) not in (None, settings):
        raise DataError(f"{folder}: was begun in another way; delete it to begin anew")
    existing = {caption for captions in known.values() for caption in captions}
    done = set() if begun is None else UnseenCaptions(folder).without(existing)
    remaining = {label: captions for label, captions in sorted(known.items()) if label not in done}
    if not remaining:
        return folder
    inventor = _open(source, existing)
    for label, captions in tqdm(remaining.items(), total=len(known), initial=len(done), unit="class", disable=None):
        key = hashlib.blake2b(label.encode(), digest_size=8).hexdigest()  # a seed that ignores other classes
        rng = np.random.default_rng((seed, int(key, 16)))
        found = _invent(inventor, label, captions, existing, per_class, references, rng)
        if not found:
            raise DataError(f"{label}: {source} gave no caption that no training picture has")
        if len(found) < per_class:
            tqdm.write(f"{label}: {source} gave only {len(found)} new captions of {per_class}")
        if begun is None:  # only once there is a result
            begun = settings
            write_text(manifest, json.dumps(settings))
        write_text(join(folder, f"{key}.json"), json.dumps({"label": label, "captions": found}) + "\n")
    return folder


class UnseenCaptions:
    """The captions of a folder written by `write_unseen_captions`.

    Args:
        folder: the folder that `write_unseen_captions` returns.

    Raises:
        DataError: the folder does not exist, or a list in it is broken.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        if read_json(join(folder, "manifest.json")) is None:
            raise DataError(f"{folder}: no unseen captions there; imtok captions writes them")
        names = [name for name in list_files(folder) if name.endswith(".json") and name != "manifest.json"]
        lists = {name: read_json(join(folder, name)) or {} for name in names}
        if broken := [name for name, entry in lists.items() if "label" not in entry or not entry.get("captions")]:
            raise DataError(f"{join(folder, broken[0])}: names no label and captions; delete it, imtok captions anew")
        self.folder = str(folder)
        self._captions: Mapping[str, list[str]] = {entry["label"]: entry["captions"] for entry in lists.values()}

    @property
    def labels(self) -> list[str]:
        """The classes."""
        return list(self._captions)

    def without(self, known: Collection[str]) -> set[str]:
        """Return the classes none of whose captions is in `known`."""
        return {label for label, captions in self._captions.items() if not set(known) & set(captions)}

    def captions(self) -> Iterator[str]:
        """Yield the captions of all classes."""
        return (caption for captions in self._captions.values() for caption in captions)

    def draw(self, label: str, seed: int) -> str:
        """Return a random caption of a class, the same for the same seed.

        Raises:
            DataError: there is no list for the class.
        """
        if label not in self._captions:
            raise DataError(f"{self.folder}: has no captions of {label!r}, only of {', '.join(sorted(self._captions))}")
        captions = self._captions[label]
        return captions[np.random.default_rng(abs(seed)).integers(len(captions))]


def copy_unseen_captions(data: str | PathLike[str], folder: Path) -> None:
    """Copy the unseen captions of some shards into a local folder.

    Raises:
        DataError: the shards have no unseen captions.
    """
    source = join(data, FOLDER)
    UnseenCaptions(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(source):
        filesystem, place = locate(join(source, name))
        (folder / name).write_bytes(filesystem.read_bytes(place))


def captions_by_class(data: str | PathLike[str]) -> dict[str, list[str]]:
    """Return the distinct captions of each class of some pictures, in order of first occurrence."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the order and drops repetitions
    for sample in open_dataset(data).annotations():
        if sample.label is not None:
            found[sample.label] |= dict.fromkeys(sample.captions)
    return {label: list(captions) for label, captions in found.items() if captions}


def _invent(
    inventor: Inventor,
    label: str,
    known: Sequence[str],
    existing: Collection[str],
    count: int,
    references: int,
    rng: np.random.Generator,
) -> list[str]:
    """Return up to `count` distinct new captions of a class, none of which any picture has."""
    new: dict[str, None] = {}
    for _ in range(count * _TRIES):
        shown = [known[int(i)] for i in rng.choice(len(known), min(references, len(known)), replace=False)]
        caption = inventor(label, shown, int(rng.integers(2**31)))
        if caption is None:
            break
        if caption and caption not in existing:
            new[caption] = None
        if len(new) == count:
            break
    return list(new)


def _open(source: str, existing: Collection[str]) -> Inventor:
    folder, words = split_word_limit(source)
    if os.path.isdir(folder) and (Path(folder) / "config.json").is_file():
        writer = load_writer(Path(folder), words)
        return writer.write
    others = captions_by_class(source)
    unused = {label: (text for text in texts if text not in existing) for label, texts in others.items()}
    return lambda label, shown, seed: next(unused.get(label, iter(())), None)
