"""TokBench's annotation files and pictures, in the layout of its release (Wu et al. 2025)."""

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
    """One set of TokBench (`annotations/text_ic13.json`), or all text and face sets together, as TokBench scores them.

    The pictures are in `images/text_data/SET` and `images/face_data/wflw` next to `annotations`. The sizes of words and
    faces (`ratio`) are taken from the files. Face boxes are computed from the landmarks, because the format of the
    boxes in the files is unknown.

    Args:
        path: an annotation file, or the folder that holds `annotations` and `images`.

    Raises:
        DataError: a file is not a list of TokBench's entries.
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
                image, annotations = (
                    f"{_FACE_PICTURES}/{row['image_name']}",
                    {"faces": [_face(face) for face in row["faces"]]},
                )
            else:
                image = f"images/text_data/{_set_of(name)}/{row['file_name']}"
                annotations = {"words": [_word(word) for word in row["annotations"]]}
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise PictureError(f"{file}: entry {index} is malformed ({error!r})") from None
        if is_address(image):
            raise PictureError(f"{file}: entry {index} names an address, {image}")
        return make_sample(read_bytes(join(parent(parent(file)), image)), image, annotations)


def is_tokbench(folder: str) -> bool:
    """Return whether a folder holds the TokBench release."""
    return bool(_files_of(folder))


def _files_of(folder: str) -> list[str]:
    place = join(folder, "annotations")
    filesystem, root = locate(place)
    names = list_files(place) if filesystem.isdir(root) else []
    return [join(place, name) for name in names if name == _FACES or _set_of(name)]


def _set_of(name: str) -> str:
    """Return the set name of a text annotation file, such as ic13 for text_ic13.json; empty for any other file."""
    is_text_set = name.startswith("text_") and name.endswith(".json")
    return name.removeprefix("text_").removesuffix(".json") if is_text_set else ""


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
    box = [float(int(side)) for side in word["bbox"]]  # truncated towards zero, as TokBench does
    return {"box": box, "text": word["rec"], "ratio": word["ratio"]}


def _face(face: dict[str, Any]) -> dict[str, Any]:
    """Return the face with a box that extends the landmarks' bounds by half their longer side in each direction."""
    xs, ys = zip(*face["kps"], strict=True)
    padding = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    box = [min(xs) - padding, min(ys) - padding, max(xs) + padding, max(ys) + padding]
    return {"box": box, "landmarks": face["kps"], "ratio": face["ratio"]}
