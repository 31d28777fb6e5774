"""Mean and standard deviation of each channel of stored latents, in a file that a digest ties to them.

FOLDER/statistics.json    {"of": a digest of the manifest and of the parts' names and sizes, "mean": […], "std": […]}
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from imtok.config import FORMAT_VERSION
from imtok.data.addresses import join, locate, read_json, write_text
from imtok.data.sample import DataError
from imtok.data.token_shards import TokenShards

FILE = "statistics.json"


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Mean and standard deviation of each channel, over all tokens of all crops."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def write_statistics(shards: TokenShards) -> LatentStatistics:
    """Return the statistics of all latents; compute them and write them next to the latents if not yet done.

    A constant channel gets a standard deviation of 1.

    Args:
        shards: complete token shards of latents.

    Raises:
        DataError: there are no latents, or some are not finite.
    """
    with suppress(DataError):
        return read_statistics(shards)
    count, sums, squares = 0, np.zeros(shards.manifest.width), np.zeros(shards.manifest.width)
    for index in tqdm(range(len(shards)), desc="measuring", unit="picture", disable=None):
        values = shards[index].values.reshape(-1, shards.manifest.width).astype(np.float64)
        count += len(values)
        sums += values.sum(0)
        squares += np.square(values).sum(0)
    if not count or not np.isfinite(squares).all():
        raise DataError(f"{shards.folder}: {'some latents are not finite' if count else 'no latents to measure'}")
    std = np.sqrt(np.maximum(squares / count - np.square(sums / count), 0))
    statistics = LatentStatistics(
        mean=tuple((sums / count).tolist()), std=tuple(np.where(std > 1e-8, std, 1.0).tolist())
    )
    values = {"format_version": FORMAT_VERSION, "of": _digest(shards), "mean": statistics.mean, "std": statistics.std}
    write_text(join(shards.folder, FILE), json.dumps(values) + "\n")
    return statistics


def read_statistics(shards: TokenShards) -> LatentStatistics:
    """Read the file of `write_statistics`.

    Raises:
        DataError: the file is missing, or was computed from other latents.
    """
    values = read_json(join(shards.folder, FILE)) or {}
    if values.get("format_version") != FORMAT_VERSION or values.get("of") != _digest(shards):
        which = "of other latents than these" if values else "missing"
        raise DataError(f"{shards.folder}/{FILE}: {which}; call imtok encode once more as before, and it measures them")
    return LatentStatistics(mean=tuple(values["mean"]), std=tuple(values["std"]))


def _digest(shards: TokenShards) -> str:
    digest = hashlib.sha256(json.dumps(shards.manifest.to_json(), sort_keys=True).encode())
    for part in shards.parts:
        filesystem, place = locate(part)
        digest.update(f"{part.rpartition('/')[2]} {filesystem.size(place)}\n".encode())
    return digest.hexdigest()
