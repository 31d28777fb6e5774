"""Captions for pictures that have none of their own: from a table, a template, or a vision-language model."""

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
"""The captions that a picture shall have from now on."""
_OF_A_MODEL = (".json", ".safetensors")


def make_captioner(captions: str) -> Captioner:
    """What `imtok annotate --captions` asks for.

    Args:
        captions: a JSONL or CSV file with an image column and `captions` or `caption`; its captions replace those of
            the pictures it lists, named by their path (in the collection, or from further up) or by file name. Or a
            template like "a photo of a {label}"; it serves pictures that have a label and no caption. Or a local folder
            with a vision-language model of the transformers library; it writes captions of up to 75 words for pictures
            that have none (25 behind a colon: `MODEL:25`), as TexTok's appendix D asks for them.

    Raises:
        DataError: nothing of that kind, or a template that names something else than {label}.
        ConfigError: a folder that holds no such model.
    """
    filesystem, place = locate(captions)
    if filesystem.isfile(place):
        return _from_table(captions)
    folder, words = split_word_limit(captions)
    if os.path.isdir(folder):  # Path.is_dir minds long names, and templates can be long
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
    """A hash of the names and sizes of the files of a table, model or collection with captions; empty for a template.

    Args:
        captions: as `make_captioner` and `write_unseen_captions` take it.
    """
    folder, _ = split_word_limit(captions)
    is_model = os.path.isfile(os.path.join(folder, "config.json"))
    return fingerprint(folder, _OF_A_MODEL) if is_model else fingerprint(captions)


def split_word_limit(model: str) -> tuple[str, int]:
    """`MODEL:25` into a model's place and its words; 75 where none are given (TexTok, section 4.1).

    Raises:
        DataError: no words at all.
    """
    place, _, words = model.rpartition(":")
    if not words.isdecimal():
        return model, 75
    if int(words) < 1:
        raise DataError(f"{model}: captions of no words")
    return place, int(words)


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
    listed = PathLookup(captions)
    return lambda sample: listed.of(sample.path) or sample.captions
