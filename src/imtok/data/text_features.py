"""What a text encoder says of captions, computed once: a folder beside the pictures' shards.

    SHARDS/text_features/ENCODER-LENGTH/manifest.json      which encoder, of which weights, and the longest caption
    SHARDS/text_features/ENCODER-LENGTH/part-00000.arrow   a caption's hash and its states, in fp16, without padding

A part is written under a temporary name and renamed, so that a kill at any moment costs one part.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from tqdm import tqdm

from imtok import pretrained
from imtok.config import FORMAT_VERSION
from imtok.data.addresses import join, list_files
from imtok.data.arrow import open_arrow
from imtok.data.readers import open_source
from imtok.data.sample import DataError
from imtok.layers.collective import best_device
from imtok.pretrained.language import TextEncoder

CAPTIONS_PER_PART = 2048
_ROWS = 8
"""Captions that are read together."""
_KEY_BYTES = 16
_SCHEMA = pa.schema([("key", pa.binary(_KEY_BYTES)), ("states", pa.list_(pa.float16()))])


def embed(data: str, encoder: str, max_tokens: int = 128, batch_size: int = 32) -> str:
    """Write the features of all captions of some shards beside them; captions that are there already stay.

    Args:
        data: a folder of shards.
        encoder: a text encoder by its name behind the door, such as `text_encoder/minilm`.
        max_tokens: longer captions are cut.
        batch_size: captions that are read together.

    Returns:
        The folder of features.

    Raises:
        ConfigError: a length that the encoder cannot read.
        DataError: no captions, no text encoder, features by other weights of it, or states that fp16 cannot hold.
        MissingWeights: the encoder is not here.
    """
    network = pretrained.load(encoder)
    if not isinstance(network, TextEncoder):
        raise DataError(f"{encoder}: reads no text; imtok weights lists the text encoders")
    network.check_length(max_tokens)
    network.to(best_device())
    folder = features_folder(data, encoder, max_tokens)
    wanted = {
        "format_version": FORMAT_VERSION,
        "encoder": encoder,
        "sha256": network.sha256,
        "dim": network.embed_dim,
        "max_tokens": max_tokens,
    }
    filesystem, place = fsspec.url_to_fs(folder)
    if not has_features(data, encoder, max_tokens):
        filesystem.makedirs(place, exist_ok=True)
        filesystem.write_text(f"{place}/manifest.json.partial", json.dumps(wanted))
        filesystem.mv(f"{place}/manifest.json.partial", f"{place}/manifest.json")
    elif json.loads(filesystem.read_text(f"{place}/manifest.json")) != wanted:
        raise DataError(f"{folder}: was begun with other weights of the encoder; delete it to begin anew")
    there = TextFeatures(folder)
    captions = [caption for caption in distinct_captions(data) if caption not in there]
    if not captions and not len(there):
        raise DataError(f"{data}: none of its pictures has a caption; imtok annotate --captions gives them some")
    with tqdm(total=len(captions), unit="caption", disable=None) as progress:
        for number, part in enumerate(_cut(captions, CAPTIONS_PER_PART), there.next_part):
            rows: list[dict[str, Any]] = []
            for texts in _cut(part, batch_size):
                rows += _rows(network, texts, max_tokens)
                progress.update(len(texts))
            _write(f"{place}/part-{number:05d}.arrow", filesystem, rows)
    return folder


class TextFeatures:
    """Stored features by caption; local parts are mapped into memory, remote ones are read: keep large ones local.

    Raises:
        DataError: no such folder, or one that a newer imtok wrote.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = str(folder)
        filesystem, place = fsspec.url_to_fs(self.folder)
        try:
            self.manifest: dict[str, Any] = json.loads(filesystem.read_text(f"{place}/manifest.json"))
        except FileNotFoundError:
            raise DataError(f"{folder}: no text features there; imtok embed makes them") from None
        if self.manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{folder}: of another format version; install the imtok that wrote it, or a newer one")
        self.parts = [join(folder, name) for name in list_files(folder) if name.endswith(".arrow")]
        self._readers = [open_arrow(part) for part in self.parts]
        self.next_part = 1 + max((int(part[-len("00000.arrow") :][:5]) for part in self.parts), default=-1)
        self._places: dict[bytes, tuple[int, int, int]] = {}  # by a caption's key: part, group of rows, row
        for number, reader in enumerate(self._readers):
            for group in range(reader.num_record_batches):
                keys = reader.get_batch(group)["key"].to_pylist()
                self._places |= {key: (number, group, row) for row, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, caption: str) -> bool:
        return _key(caption) in self._places

    def states(self, caption: str) -> Float[np.ndarray, "tokens dim"]:
        """A caption's token states.

        Raises:
            KeyError: it is not among them.
        """
        number, group, row = self._places[_key(caption)]
        values = self._readers[number].get_batch(group)["states"][row].values.to_numpy()
        return values.reshape(-1, self.manifest["dim"]).astype(np.float32)


def features_folder(data: str | PathLike[str], encoder: str, max_tokens: int) -> str:
    """Where the features of some shards' captions lie."""
    return join(data, f"text_features/{encoder.replace('/', '-')}-{max_tokens}")


def has_features(data: str | PathLike[str], encoder: str, max_tokens: int) -> bool:
    """Whether there are any."""
    filesystem, place = fsspec.url_to_fs(features_folder(data, encoder, max_tokens))
    return bool(filesystem.exists(f"{place}/manifest.json"))


def distinct_captions(data: str | PathLike[str]) -> Iterator[str]:
    """Every caption of some pictures once, in their order."""
    seen: set[bytes] = set()
    for sample in open_source(data).annotations():
        for caption in sample.captions:
            if _key(caption) not in seen:
                seen.add(_key(caption))
                yield caption


def _cut(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.no_grad()
def _rows(network: Any, texts: Sequence[str], max_tokens: int) -> list[dict[str, Any]]:
    states, mask = network.encode(texts, max_tokens)
    rows = []
    for text, of_it, there in zip(texts, states.cpu().numpy(), mask.cpu().numpy(), strict=True):
        with np.errstate(over="ignore"):  # checked below
            kept = of_it[there].astype(np.float16)
        if not np.isfinite(kept).all():
            raise DataError(f"{network.name}: its states of {text[:60]!r} are too large for fp16")
        rows.append({"key": _key(text), "states": kept.ravel()})
    return rows


def _write(path: str, filesystem: Any, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with filesystem.open(f"{path}.partial", "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        writer.write_table(table, max_chunksize=_ROWS)
    filesystem.mv(f"{path}.partial", path)


def _key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode(), digest_size=_KEY_BYTES).digest()
