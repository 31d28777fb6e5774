"""Token states of a text encoder for captions, computed once and stored in a folder next to the pictures' shards.

    SHARDS/text_features/ENCODER-LENGTH-HASH/manifest.json      which encoder, and the maximum caption length
    SHARDS/text_features/ENCODER-LENGTH-HASH/part-00000.arrow   per caption: its hash and states, without padding

HASH is a hash of the encoder's weights, so that features of several versions of an encoder can be stored side by side.
States are stored in fp16, or in fp32 if a state of the part exceeds the range of fp16, as may happen with large
language models. A part is written under a temporary name and renamed, so that an interruption loses at most one part.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from os import PathLike

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from tqdm import tqdm

from imtok import pretrained
from imtok.config import FORMAT_VERSION, ConfigError
from imtok.data.addresses import join, list_files, read_json, write_text
from imtok.data.arrow import OPEN_FILES, open_arrow, write_arrow
from imtok.data.filling import check_alone, check_finished
from imtok.data.readers import open_dataset
from imtok.data.sample import DataError
from imtok.layers.collective import best_device
from imtok.pretrained.language import TextEncoder

CAPTIONS_PER_PART = 2048
_FOLDER = "text_features"
_ROWS = 8
"""Captions per record batch, which are read together."""
_KEY_BYTES = 16


def embed(data: str, encoder: str, max_tokens: int = 128, batch_size: int = 32) -> str:
    """Compute text features of all captions of a folder of shards and store them in it; existing features are kept.

    Args:
        data: a folder of shards.
        encoder: registry name of a text encoder, such as `text_encoder/minilm`.
        max_tokens: maximum number of tokens per caption; longer captions are truncated.
        batch_size: number of captions that are encoded together.

    Returns:
        The folder of features.

    Raises:
        ConfigError: `max_tokens` is not supported by the encoder, or `batch_size` is less than 1.
        DataError: several processes were started, the shards are unfinished or have no captions, `encoder` is not a
            text encoder, or its states are not finite.
        MissingWeights: the encoder's weights are not installed.
    """
    check_alone(data)
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1")
    network = pretrained.load(encoder)
    if not isinstance(network, TextEncoder):
        raise DataError(f"{encoder}: reads no text; imtok weights lists the text encoders")
    network.check_length(max_tokens)
    network.to(best_device())
    check_finished(data)
    captions = list(distinct_captions(data))
    if not captions:
        raise DataError(f"{data}: none of its pictures has a caption; imtok annotate --captions gives them some")
    folder = join(data, f"{_FOLDER}/{_folder_prefix(encoder, max_tokens)}{network.sha256[:16]}")
    manifest = join(folder, "manifest.json")
    if read_json(manifest) is None:
        contents = {
            "format_version": FORMAT_VERSION,
            "encoder": encoder,
            "sha256": network.sha256,
            "dim": network.embed_dim,
            "max_tokens": max_tokens,
        }
        write_text(manifest, json.dumps(contents))
    existing = TextFeatures(folder)
    captions = [caption for caption in captions if caption not in existing]
    if cut := sum(network.length(caption) > max_tokens for caption in captions):
        tqdm.write(f"{cut} of {len(captions)} captions are longer than {max_tokens} tokens, and are cut")
    with tqdm(total=len(captions), unit="caption", disable=None) as progress:
        for number, part in enumerate(_chunks(captions, CAPTIONS_PER_PART), existing.next_part):
            states: list[Float[np.ndarray, "_ dim"]] = []
            for texts in _chunks(part, batch_size):
                states += _encode(network, texts, max_tokens)
                progress.update(len(texts))
            _write(join(folder, f"part-{number:05d}.arrow"), part, states)
    return folder


class TextFeatures:
    """Stored text features by caption; local parts are memory-mapped, remote ones are read: keep large ones local.

    Raises:
        DataError: the folder does not exist, or a newer imtok wrote it.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = str(folder)
        manifest = read_json(join(folder, "manifest.json"))
        if manifest is None:
            raise DataError(f"{folder}: no text features there; imtok embed makes them")
        self.manifest = manifest
        if self.manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{folder}: of another format version; install the imtok that wrote it, or a newer one")
        self.parts = [join(folder, name) for name in list_files(folder) if name.endswith(".arrow")]
        self._open = lru_cache(OPEN_FILES)(open_arrow)
        self.next_part = 1 + max((int(part[-len("00000.arrow") :][:5]) for part in self.parts), default=-1)
        self._places: dict[bytes, tuple[int, int, int]] = {}  # caption key to part, record batch and row
        for number, part in enumerate(self.parts):
            reader = self._open(part)
            for group in range(reader.num_record_batches):
                keys = reader.get_batch(group)["key"].to_pylist()
                self._places |= {key: (number, group, row) for row, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, caption: str) -> bool:
        return _key(caption) in self._places

    def states(self, caption: str) -> Float[np.ndarray, "tokens dim"]:
        """Return the token states of a caption.

        Raises:
            KeyError: the caption has no stored features.
        """
        number, group, row = self._places[_key(caption)]
        values = self._open(self.parts[number]).get_batch(group)["states"][row].values.to_numpy()
        return values.reshape(-1, self.manifest["dim"]).astype(np.float32)


def stored_features(data: str | PathLike[str], encoder: str, max_tokens: int) -> list[TextFeatures]:
    """Return all features stored for some pictures by an encoder, one entry for each version of its weights."""
    root = join(data, _FOLDER)
    manifests = (name for name in list_files(root, deep=True) if name.endswith("/manifest.json"))
    folders = (name.removesuffix("/manifest.json") for name in manifests)
    return [TextFeatures(join(root, name)) for name in folders if name.startswith(_folder_prefix(encoder, max_tokens))]


def _folder_prefix(encoder: str, max_tokens: int) -> str:
    """Return the prefix that an encoder's folder names share for all versions of its weights."""
    return f"{encoder.replace('/', '-')}-{max_tokens}-"


def distinct_captions(data: str | PathLike[str]) -> Iterator[str]:
    """Yield the distinct captions of some pictures, in order of first occurrence."""
    seen: set[bytes] = set()
    for sample in open_dataset(data).annotations():
        for caption in sample.captions:
            if _key(caption) not in seen:
                seen.add(_key(caption))
                yield caption


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.no_grad()
def _encode(network: TextEncoder, texts: Sequence[str], max_tokens: int) -> list[Float[np.ndarray, "_ dim"]]:
    """Return the token states of each text without padding, in fp16 if its range suffices, else in fp32."""
    states, mask = network.encode(texts, max_tokens)
    return [
        _narrow(text_states[is_token], f"{network.name}: its states of {text[:60]!r}")
        for text, text_states, is_token in zip(texts, states.cpu().numpy(), mask.cpu().numpy(), strict=True)
    ]


def _narrow(states: Float[np.ndarray, "tokens dim"], subject: str) -> Float[np.ndarray, "tokens dim"]:
    if not np.isfinite(states).all():
        raise DataError(f"{subject} are not finite")
    return states.astype(np.float16 if np.abs(states).max() <= np.finfo(np.float16).max else np.float32)


def _write(path: str, texts: Sequence[str], states: Sequence[Float[np.ndarray, "_ dim"]]) -> None:
    needs_fp32 = any(values.dtype == np.float32 for values in states)
    dtype, arrow_type = (np.float32, pa.float32()) if needs_fp32 else (np.float16, pa.float16())
    schema = pa.schema([("key", pa.binary(_KEY_BYTES)), ("states", pa.list_(arrow_type))])
    rows = [
        {"key": _key(text), "states": values.astype(dtype).ravel()} for text, values in zip(texts, states, strict=True)
    ]
    write_arrow(path, pa.Table.from_pylist(rows, schema=schema), _ROWS)


def _key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode(), digest_size=_KEY_BYTES).digest()
