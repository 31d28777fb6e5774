"""Captions for pictures that have none of their own: from a table, or from a template."""

import string
from collections.abc import Callable
from pathlib import PurePosixPath

import fsspec

from imtok.data.readers import image_of, listed_captions, read_table
from imtok.data.sample import DataError, Sample

Captioner = Callable[[Sample], list[str]]
"""The captions that a picture shall have from now on."""


def make_captioner(captions: str) -> Captioner:
    """What `imtok annotate --captions` asks for.

    Args:
        captions: a JSONL or CSV file with an image column and `captions` or `caption`; its captions replace those of
            the pictures it lists, named by path or by file name. Or a template like "a photo of a {label}"; it serves
            pictures that have a label and no caption.

    Raises:
        DataError: neither a file nor a template, or a template that names something else than {label}.
    """
    filesystem, place = fsspec.url_to_fs(captions)
    if filesystem.isfile(place):
        return _from_table(captions)
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(captions) if field is not None}
    except ValueError as error:
        raise DataError(f"caption template {captions!r}: {error}") from None
    if fields != {"label"}:
        raise DataError(f"captions {captions!r}: neither a file nor a template with {{label}} alone in braces")

    def from_template(sample: Sample) -> list[str]:
        if sample.captions or sample.label is None:
            return sample.captions
        return [captions.format(label=sample.label.replace("_", " "))]

    return from_template


def _from_table(path: str) -> Captioner:
    captions: dict[str, list[str]] = {}
    for line, row in read_table(path):
        image = image_of(row)
        if image is None:
            raise DataError(f"{path}:{line}: names no image")
        captions.setdefault(image, []).extend(listed_captions(row))

    def from_table(sample: Sample) -> list[str]:
        return captions.get(sample.path) or captions.get(PurePosixPath(sample.path).name) or sample.captions

    return from_table
