"""TokBench's own annotation files beside its pictures, as its release lays them out (Wu et al. 2025)."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from imtok.data.addresses import file_part, is_address, join, list_files, local_place, locate, open_file, parent
from imtok.data.pictures import read_bytes
from imtok.data.rows import make_sample
from imtok.data.sample import DataError, Dataset, PictureError, Sample

_FACES = "face_meta.json"
_FACE_PICTURES = "images/face_data/wflw"


class TokBenchDataset(Dataset):
    """One set of TokBench (`annotations/text_ic13.json`), or all its words and faces together, as it scores them.

    Pictures are those of `images/text_data/SET` and `images/face_data/wflw` beside `annotations`. The sizes of words
    and faces are the stated ones. Faces get a box around their landmarks: how the stated one is written is not known.

    Args:
        path: an annotation file, or the folder that holds `annotations` and `images`.

    Raises:
        DataError: not a list of TokBench's entries.
    """

    def __init__(self, path: str) -> None:
        files = [local_place(path) or path] if file_part(path).lower().endswith(".json") else _files_of(path)
        self._rows = [(file, row) for file in files for row in _read(file)]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample:
        file, row = self._rows[index]
        name = PurePosixPath(file_part(file)).name
        try:
            if name == _FACES:
                image, found = f"{_FACE_PICTURES}/{row['image_name']}", {"faces": [_face(one) for one in row["faces"]]}
            else:
                image = f"images/text_data/{_set_of(name)}/{row['file_name']}"
                found = {"words": [_word(one) for one in row["annotations"]]}
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise PictureError(f"{file}: entry {index} is malformed ({error!r})") from None
        if is_address(image):
            raise PictureError(f"{file}: entry {index} names an address, {image}")
        return make_sample(read_bytes(join(parent(parent(file)), image)), image, found)


def is_tokbench(folder: str) -> bool:
    """Whether a folder holds the release."""
    return bool(_files_of(folder))


def _files_of(folder: str) -> list[str]:
    place = join(folder, "annotations")
    filesystem, root = locate(place)
    names = list_files(place) if filesystem.isdir(root) else []
    return [join(place, name) for name in names if name == _FACES or _set_of(name)]


def _set_of(name: str) -> str:
    """What a file of words is about, ic13 for text_ic13.json; empty for any other file."""
    fits = name.startswith("text_") and name.endswith(".json")
    return name.removeprefix("text_").removesuffix(".json") if fits else ""


def _read(file: str) -> Iterator[dict[str, Any]]:
    name = PurePosixPath(file_part(file)).name
    try:
        with open_file(file) as opened:
            rows = json.load(opened)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    if not (name == _FACES or _set_of(name)) or not isinstance(rows, list):
        raise DataError(f"{file}: expected TokBench's text_SET.json or {_FACES}, a list of pictures")
    yield from rows


def _word(word: dict[str, Any]) -> dict[str, Any]:
    box = [float(int(side)) for side in word["bbox"]]  # cut off towards zero, as it does
    return {"box": box, "text": word["rec"], "ratio": word["ratio"]}


def _face(face: dict[str, Any]) -> dict[str, Any]:
    """The box reaches half the points' extent beyond them."""
    xs, ys = zip(*face["kps"], strict=True)
    more = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    box = [min(xs) - more, min(ys) - more, max(xs) + more, max(ys) + more]
    return {"box": box, "landmarks": face["kps"], "ratio": face["ratio"]}
