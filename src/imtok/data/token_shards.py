"""Pictures as a tokenizer has written them down: codes or latents with captions and labels, mapped into memory.

    FOLDER/manifest.json      which tokenizer, of which weights, which crops of which size
    FOLDER/part-00000.arrow   a row for each picture: path, label, captions, and the tokens of its crops
    FOLDER/statistics.json    of latents: see `latent_statistics`

A part is written under a temporary name and renamed, so that a kill at any moment costs one part. pandas and pyarrow
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
"""Pictures that are read together."""


@dataclass(frozen=True, kw_only=True)
class TokenManifest:
    """What is in a folder of token shards, and what made it.

    Attributes:
        tokenizer: as it was named: a shipped name or a path.
        sha256: of the tokenizer's weights.
        source: the pictures.
        pictures: how many of them there are.
        resolution: of the crops in pixels.
        crops: the rule by which pictures were cropped.
        codebook_sizes: of a discrete tokenizer; empty for latents.
        branch_dims: channels of a token's latents that belong to each codebook, or of all.
        tokens: of a crop.
        grid_size: rows and columns of the patches that the decoder draws.
        tokens_on_grid: whether every token belongs to one of them.
        fingerprint: of the pictures' files; see `readers.fingerprint`.
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
        """Numbers a token: codebooks, or channels."""
        return len(self.codebook_sizes) or sum(self.branch_dims)

    def to_json(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TokenManifest":
        """The inverse of `to_json`."""
        pairs = {name: tuple(values[name]) for name in ("codebook_sizes", "branch_dims", "grid_size")}
        return cls(**{**values, **pairs})


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """One picture's tokens.

    Attributes:
        values: int codes or float latents of each of its crops.
        path: where the picture came from.
        label: its class.
        captions: of it.
    """

    values: Num[np.ndarray, "crops tokens width"]
    path: str
    label: str | None = None
    captions: Sequence[str] = ()


class TokenWriter:
    """Adds parts to a folder of token shards; begun ones are gone on with.

    Args:
        folder: local or any fsspec address.
        manifest: of what will be written.

    Raises:
        DataError: the folder was begun with another tokenizer, other crops or other pictures, or has lost a part.
    """

    def __init__(self, folder: str | PathLike[str], manifest: TokenManifest) -> None:
        self.folder, self.manifest = str(folder), manifest
        file = join(folder, "manifest.json")
        if (begun := read_json(file)) is not None:
            wanted = json.loads(json.dumps(manifest.to_json()))
            check_begun(folder, begun, wanted)
        else:
            write_text(file, json.dumps(manifest.to_json(), indent=2) + "\n")
        there = TokenShards(folder)
        self.written, self._next = len(there), len(there.parts)
        for part, name in zip(there.parts, map(_part_name, range(self._next)), strict=True):
            if not part.endswith(name):
                raise DataError(f"{folder}: {name} is missing; delete the parts behind it, and they are made again")

    def write(self, rows: Sequence[Tokens]) -> None:
        """Write one part with these pictures."""
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
    """The pictures of a folder of token shards as one random-access sequence; local parts are mapped into memory.

    Raises:
        DataError: no such folder, or one that a newer imtok wrote.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = str(folder)
        values = read_json(join(folder, "manifest.json"))
        if values is None:
            raise DataError(f"{folder}: no token shards there; imtok encode makes them")
        try:
            self.manifest = TokenManifest.from_json(values)
            known = self.manifest.format_version == FORMAT_VERSION
        except (KeyError, TypeError):  # too little in it, or too much
            known = False
        if not known:
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
        """One picture, 0 <= index < len(self)."""
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
        """Whether all pictures are in it."""
        return len(self) == self.manifest.pictures

    def labels(self) -> list[str]:
        """The classes that occur, sorted."""
        columns = (self._batch(*group)["label"] for group in self._groups)
        return sorted({label for column in columns for label in column.to_pylist() if label is not None})

    def captions(self) -> Iterator[str]:
        """Every picture's captions, in the order of the pictures."""
        return (caption for group in self._groups for caption in self._batch(*group)["captions"].flatten().to_pylist())

    def captioned(self) -> bool:
        """Whether any picture has a caption."""
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
