"""Captioners, which set the captions of pictures: from a table, a template, or a vision-language model."""

import os
from collections.abc import Callable
from pathlib import Path

from imtok.data.addresses import locate
from imtok.data.pictures import decode
from imtok.data.readers import fingerprint, image_of, read_table
from imtok.data.rows import PathLookup, listed_captions
from imtok.data.sample import DataError, Sample
from imtok.pretrained.captioner import load_captioner

Captioner = Callable[[Sample], list[str]]
"""Maps a sample to its new list of captions."""
_MODEL_SUFFIXES = (".json", ".safetensors")


def make_captioner(captions: str) -> Captioner:
    """Return the captioner that `imtok annotate --captions` selects.

    Args:
        captions: a JSONL or CSV file with an image column and `captions` or `caption`; its captions replace those of
            the pictures it lists by path (within the collection, or a longer path that ends with it) or by file name.
            Or a template like "a photo of a {label}", applied to pictures that have a label and no caption. Or a local
            folder with a vision-language model of the transformers library, which writes captions of up to 75 words
            (25 for `MODEL:25`) for pictures that have none, prompted as in TexTok's appendix D.

    Raises:
        DataError: none of these, or a template with a field other than {label}.
        ConfigError: the folder holds no such model.
    """
    filesystem, path = locate(captions)
    if filesystem.isfile(path):
        return _from_table(captions)
    folder, words = split_word_limit(captions)
    if os.path.isdir(folder):  # unlike Path.is_dir, accepts names as long as a template
        return _from_model(Path(folder), words)
    start, field, end = captions.partition("{label}")
    if not field or set("{}") & set(start + end):
        raise DataError(
            f"captions {captions!r}: no file, no model's folder, no template with {{label}} once and no other brace"
        )

    def from_template(sample: Sample) -> list[str]:
        if sample.captions or sample.label is None:
            return sample.captions
        return [start + sample.label.replace("_", " ") + end]

    return from_template


def captions_fingerprint(captions: str) -> str:
    """Return a hash of the file names and sizes of a table, model or collection with captions; empty for a template.

    Args:
        captions: an argument of `make_captioner`, or the `source` of `write_unseen_captions`.
    """
    folder, _ = split_word_limit(captions)
    is_model = os.path.isfile(os.path.join(folder, "config.json"))
    return fingerprint(folder, _MODEL_SUFFIXES) if is_model else fingerprint(captions)


def split_word_limit(model: str) -> tuple[str, int]:
    """Split `MODEL:25` into the model's path and the word limit, by default 75 (TexTok, section 4.1).

    Raises:
        DataError: the limit is 0.
    """
    path, _, words = model.rpartition(":")
    if not words.isdecimal():
        return model, 75
    if int(words) < 1:
        raise DataError(f"{model}: captions of no words")
    return path, int(words)


def _from_model(folder: Path, max_words: int) -> Captioner:
    captioner = load_captioner(folder, max_words)

    def from_model(sample: Sample) -> list[str]:
        if sample.captions:
            return sample.captions
        caption = captioner.caption(decode(sample.image, sample.path), sample.label)
        return [caption] if caption else []

    return from_model


def _from_table(path: str) -> Captioner:
    captions: dict[str, list[str]] = {}
    for line, row in read_table(path):
        image = image_of(row)
        if image is None:
            raise DataError(f"{path}:{line}: names no image")
        captions.setdefault(image, []).extend(listed_captions(row))
    lookup = PathLookup(captions)
    return lambda sample: lookup.of(sample.path) or sample.captions
