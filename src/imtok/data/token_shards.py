"""Shards of tokenized pictures: codes or latents with captions and labels, memory-mapped.

    FOLDER/manifest.json      tokenizer and hash of its weights, cropping rule and resolution
    FOLDER/part-00000.arrow   a row for each picture: path, label, captions, and the tokens of its crops
    FOLDER/statistics.json    for latents only: see `latent_statistics`

A part is written under a temporary name and renamed, so that an interruption loses at most one part. pandas and pyarrow
read the parts as Feather files.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Num

from imtok.config import FORMAT_VERSION
from imtok.data.addresses import join, list_files, read_json, write_text
from imtok.data.arrow import OPEN_FILES, open_arrow, write_arrow
from imtok.data.filling import check_begun
from imtok.data.sample import DataError

_ROWS = 32
"""Pictures per record batch, which are read together."""


@dataclass(frozen=True, kw_only=True)
class TokenManifest:
    """Content of a folder of token shards, and how it was made.

    Attributes:
        tokenizer: name or path by which the tokenizer was loaded.
        sha256: hash of the tokenizer's weights.
        source: address of the pictures.
        pictures: number of pictures in the source.
        resolution: side of the crops in pixels.
        crops: the rule by which pictures were cropped.
        codebook_sizes: codebook sizes of a discrete tokenizer; empty for latents.
        branch_dims: number of latent channels of each codebook; for latents, a single number for all channels.
        tokens: number of tokens of a crop.
        grid_size: rows and columns of the decoder's patch grid.
        tokens_on_grid: whether every token belongs to a patch of the grid.
        fingerprint: hash of the pictures' files; see `readers.fingerprint`.
    """

    tokenizer: str
    sha256: str
    source: str
    pictures: int
    resolution: int
    crops: str
    codebook_sizes: tuple[int, ...]
    branch_dims: tuple[int, ...]
    tokens: int
    grid_size: tuple[int, int]
    tokens_on_grid: bool
    fingerprint: str
    format_version: int = FORMAT_VERSION

    @property
    def width(self) -> int:
        """Number of values per token: one per codebook, or one per latent channel."""
        return len(self.codebook_sizes) or sum(self.branch_dims)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `manifest.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TokenManifest":
        """Make a manifest from the content of `manifest.json`; the inverse of `to_json`."""
        pairs = {name: tuple(values[name]) for name in ("codebook_sizes", "branch_dims", "grid_size")}
        return cls(**{**values, **pairs})


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """One picture's tokens.

    Attributes:
        values: int codes or float latents of each crop.
        path: path of the picture in its source.
        label: class of the picture, or None.
        captions: captions of the picture.
    """

    values: Num[np.ndarray, "crops tokens width"]
    path: str
    label: str | None = None
    captions: Sequence[str] = ()


class TokenWriter:
    """Writes parts to a folder of token shards; an incomplete folder is continued.

    Args:
        folder: local folder or fsspec address.
        manifest: describes the tokens to be written.

    Raises:
        DataError: the folder was begun with another tokenizer, other crops or other pictures, or a part is missing.
    """

    def __init__(self, folder: str | PathLike[str], manifest: TokenManifest) -> None:
        self.folder, self.manifest = str(folder), manifest
        file = join(folder, "manifest.json")
        if (begun := read_json(file)) is not None:
            wanted = json.loads(json.dumps(manifest.to_json()))
            check_begun(folder, begun, wanted)
        else:
            write_text(file, json.dumps(manifest.to_json(), indent=2) + "\n")
        existing = TokenShards(folder)
        self.written, self._next = len(existing), len(existing.parts)
        for part, name in zip(existing.parts, map(_part_name, range(self._next)), strict=True):
            if not part.endswith(name):
                raise DataError(f"{folder}: {name} is missing; delete the parts behind it, and they are made again")

    def write(self, rows: Sequence[Tokens]) -> None:
        """Write the tokens of some pictures as one part."""
        table = pa.Table.from_pylist(
            [
                {
                    "path": row.path,
                    "label": row.label,
                    "captions": list(row.captions),
                    "crops": len(row.values),
                    "tokens": row.values.reshape(-1),
                }
                for row in rows
            ],
            schema=_schema(self.manifest),
        )
        write_arrow(join(self.folder, _part_name(self._next)), table, _ROWS)
        self._next += 1
        self.written += len(rows)


class TokenShards:
    """The pictures of a folder of token shards as one random-access sequence; local parts are memory-mapped.

    Raises:
        DataError: the folder does not exist, or has another format version.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = str(folder)
        values = read_json(join(folder, "manifest.json"))
        if values is None:
            raise DataError(f"{folder}: no token shards there; imtok encode makes them")
        try:
            self.manifest = TokenManifest.from_json(values)
            is_supported = self.manifest.format_version == FORMAT_VERSION
        except (KeyError, TypeError):  # missing or unknown fields
            is_supported = False
        if not is_supported:
            raise DataError(f"{folder}: no token shards of this imtok's format")
        self.parts = [join(folder, name) for name in list_files(folder) if name.endswith(".arrow")]
        self._open = lru_cache(OPEN_FILES)(open_arrow)
        self._groups: list[tuple[str, int]] = []
        sizes: list[int] = []
        for part in self.parts:
            reader = self._open(part)
            self._groups += [(part, group) for group in range(reader.num_record_batches)]
            sizes += [reader.get_batch(group).num_rows for group in range(reader.num_record_batches)]
        self._starts = list(accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Tokens:
        """Return the tokens of one picture, 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        batch, row = self._batch(*self._groups[number]), index - self._starts[number]
        values = batch["tokens"][row].values.to_numpy(zero_copy_only=False)
        shape = (batch["crops"][row].as_py(), self.manifest.tokens, self.manifest.width)
        return Tokens(
            values=values.reshape(shape),
            path=batch["path"][row].as_py(),
            label=batch["label"][row].as_py(),
            captions=batch["captions"][row].as_py(),
        )

    @property
    def complete(self) -> bool:
        """Whether all pictures of the source have been written."""
        return len(self) == self.manifest.pictures

    def labels(self) -> list[str]:
        """Return the sorted distinct classes."""
        columns = (self._batch(*group)["label"] for group in self._groups)
        return sorted({label for column in columns for label in column.to_pylist() if label is not None})

    def captions(self) -> Iterator[str]:
        """Yield the captions of all pictures, in the order of the pictures."""
        return (caption for group in self._groups for caption in self._batch(*group)["captions"].flatten().to_pylist())

    def captioned(self) -> bool:
        """Return whether any picture has a caption."""
        return next(self.captions(), None) is not None

    def _batch(self, part: str, group: int) -> Any:
        return self._open(part).get_batch(group)


def _part_name(number: int) -> str:
    return f"part-{number:05d}.arrow"


def _schema(manifest: TokenManifest) -> pa.Schema:
    small = max(manifest.codebook_sizes, default=0) <= 2**16
    value = pa.float16() if not manifest.codebook_sizes else pa.uint16() if small else pa.int32()
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("crops", pa.int32()),
            ("tokens", pa.list_(value)),
        ]
    )
