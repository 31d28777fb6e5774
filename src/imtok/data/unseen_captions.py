"""Captions of every class that no training picture has: what is told to a text-conditioned tokenizer's decoder when
pictures are generated from their class alone (TexTok, sections 3.2 and 4.1).

    SHARDS/unseen_captions/manifest.json    how they were made
    SHARDS/unseen_captions/HASH.json        one class: {"label": …, "captions": […]}

A class is written under a temporary name and renamed, so that a kill at any moment costs one class.
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
"""Captions that a language model may write for each that is wanted; those that are there already do not count."""

Inventor = Callable[[str, Sequence[str], int], str | None]
"""A class, captions of it and a seed to a new caption; None: there are no more."""


def write_unseen_captions(data: str, source: str, per_class: int = 50, references: int = 8, seed: int = 0) -> str:
    """Write a list of new captions for every class of some shards; lists that are there stay, as long as they are new.

    Args:
        data: a folder of shards with labels and captions.
        source: the folder of a causal language model in transformers' layout, which is shown captions of the class and
            writes up to 75 words (FOLDER:25 for 25); or shards with labels and captions of other pictures, such as
            held-out ones, whose captions are taken.
        per_class: how many.
        references: captions of the class that the language model is shown, drawn anew for each.
        seed: another seed, other captions.

    Returns:
        The folder of lists.

    Raises:
        DataError: nonsense numbers, no picture with label and caption, a class for which there is no new caption, or a
            folder that was begun in another way.
        ConfigError: a folder that holds neither a language model nor shards.
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
    if told := captions_fingerprint(source):
        settings["fingerprint"] = told
    manifest = join(folder, "manifest.json")
    if (begun := read_json(manifest)) not in (None, settings):
        raise DataError(f"{folder}: was begun in another way; delete it to begin anew")
    every = {caption for captions in known.values() for caption in captions}
    done = set() if begun is None else UnseenCaptions(folder).without(every)
    left = {label: captions for label, captions in sorted(known.items()) if label not in done}
    if not left:
        return folder
    inventor = _open(source, every)
    for label, captions in tqdm(left.items(), total=len(known), initial=len(done), unit="class", disable=None):
        key = hashlib.blake2b(label.encode(), digest_size=8).hexdigest()  # a new class then changes no other's
        rng = np.random.default_rng((seed, int(key, 16)))
        found = _invent(inventor, label, captions, every, per_class, references, rng)
        if not found:
            raise DataError(f"{label}: {source} gave no caption that no training picture has")
        if len(found) < per_class:
            tqdm.write(f"{label}: {source} gave only {len(found)} new captions of {per_class}")
        if begun is None:  # not before something comes of them
            begun = settings
            write_text(manifest, json.dumps(settings))
        write_text(join(folder, f"{key}.json"), json.dumps({"label": label, "captions": found}) + "\n")
    return folder


class UnseenCaptions:
    """The lists of a folder.

    Args:
        folder: as `write_unseen_captions` returns it.

    Raises:
        DataError: there is no such folder, or a list in it is broken.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        if read_json(join(folder, "manifest.json")) is None:
            raise DataError(f"{folder}: no unseen captions there; imtok captions writes them")
        names = [name for name in list_files(folder) if name.endswith(".json") and name != "manifest.json"]
        lists = {name: read_json(join(folder, name)) or {} for name in names}
        if broken := [name for name, one in lists.items() if "label" not in one or not one.get("captions")]:
            raise DataError(f"{join(folder, broken[0])}: names no label and captions; delete it, imtok captions anew")
        self.folder = str(folder)
        self._captions: Mapping[str, list[str]] = {one["label"]: one["captions"] for one in lists.values()}

    @property
    def labels(self) -> list[str]:
        """The classes."""
        return list(self._captions)

    def without(self, known: Collection[str]) -> set[str]:
        """The classes none of whose captions is among these."""
        return {label for label, captions in self._captions.items() if not set(known) & set(captions)}

    def captions(self) -> Iterator[str]:
        """All of them."""
        return (caption for captions in self._captions.values() for caption in captions)

    def draw(self, label: str, seed: int) -> str:
        """One caption of a class, the same for the same seed.

        Raises:
            DataError: no such class.
        """
        if label not in self._captions:
            raise DataError(f"{self.folder}: has no captions of {label!r}, only of {', '.join(sorted(self._captions))}")
        captions = self._captions[label]
        return captions[np.random.default_rng(abs(seed)).integers(len(captions))]


def copy_unseen_captions(data: str | PathLike[str], folder: Path) -> None:
    """Copy the lists of some shards into a local folder.

    Raises:
        DataError: they have none.
    """
    source = join(data, FOLDER)
    UnseenCaptions(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(source):
        filesystem, place = locate(join(source, name))
        (folder / name).write_bytes(filesystem.read_bytes(place))


def captions_by_class(data: str | PathLike[str]) -> dict[str, list[str]]:
    """The different captions of each class of some pictures, in their order."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the order and drops repetitions
    for sample in open_dataset(data).annotations():
        if sample.label is not None:
            found[sample.label] |= dict.fromkeys(sample.captions)
    return {label: list(captions) for label, captions in found.items() if captions}


def _invent(
    inventor: Inventor,
    label: str,
    known: Sequence[str],
    every: Collection[str],
    count: int,
    references: int,
    rng: np.random.Generator,
) -> list[str]:
    """New captions of a class: none that any picture has, none twice; perhaps fewer than were asked for."""
    new: dict[str, None] = {}
    for _ in range(count * _TRIES):
        shown = [known[int(i)] for i in rng.choice(len(known), min(references, len(known)), replace=False)]
        caption = inventor(label, shown, int(rng.integers(2**31)))
        if caption is None:
            break
        if caption and caption not in every:
            new[caption] = None
        if len(new) == count:
            break
    return list(new)


def _open(source: str, every: Collection[str]) -> Inventor:
    folder, words = split_word_limit(source)
    if os.path.isdir(folder) and (Path(folder) / "config.json").is_file():
        writer = load_writer(Path(folder), words)
        return writer.write
    others = captions_by_class(source)
    left = {label: (one for one in captions if one not in every) for label, captions in others.items()}
    return lambda label, shown, seed: next(left.get(label, iter(())), None)
