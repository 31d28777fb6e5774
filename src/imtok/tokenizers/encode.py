"""Encode pictures to token shards: every crop is tokenized once, so that a generator trains without pixels."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from imtok.config import ConfigError
from imtok.data.filling import check_alone, check_finished
from imtok.data.latent_statistics import write_statistics
from imtok.data.pictures import decode_sample, from_uint8
from imtok.data.readers import fingerprint, open_dataset
from imtok.data.sample import DataError, Dataset, PictureError, Sample
from imtok.data.token_shards import TokenManifest, Tokens, TokenShards, TokenWriter
from imtok.data.transforms import Crop, centre_crop
from imtok.layers.collective import best_device
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import hash_of, load, locate, shipped, trained_resolution
from imtok.tokenizers.text import TextConditioner

CropRule = Literal["centre", "ten"]
"""`centre`: the largest centred square. `ten`: five squares inside it of 1 / 1.1 of its side (corners and centre), and
their mirror images if the picture has no words (FAR's ten crops)."""
TEN_CROP_MARGIN = 1.1
PICTURES_PER_PART = 1024


def encode_pictures(
    tokenizer: str | PathLike[str],
    source: str | PathLike[str],
    out: str | PathLike[str],
    resolution: int | None = None,
    crops: CropRule = "centre",
    batch_size: int = 32,
) -> TokenShards:
    """Write the tokens of all pictures; if interrupted and called again, resume after the last complete part.

    Pictures that cannot be read get a row without crops and are named in the output. A tokenizer that is conditioned on
    captions receives the first caption of each picture, and only this caption is stored. For a continuous tokenizer,
    the statistics of the latents are computed at the end (see `latent_statistics`).

    Args:
        tokenizer: a shipped name, a run folder, or another project's checkpoint.
        source: anything that `open_dataset` reads.
        out: output folder for the shards.
        resolution: side of the crops in pixels; None: that of the crops which an imtok run was trained on.
        crops: which crops of a picture to encode.
        batch_size: number of crops that are encoded together.

    Raises:
        ConfigError: the tokenizer does not exist, `resolution` is missing for a tokenizer that is not an imtok run or
            is no multiple of the patch size, or `batch_size` is below 1.
        DataError: there are several processes, `source` is not finished, none of the pictures can be read, `out` was
            begun with other settings, or the tokenizer's weights changed because it is being trained.
    """
    check_alone(out)
    tokenizer = os.fspath(tokenizer)
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1")
    sha256 = hash_of(tokenizer)
    model = load(tokenizer, best_device())
    if hash_of(tokenizer) != sha256:
        raise DataError(f"{tokenizer}: has been saved anew meanwhile; encode when its training has ended")
    resolution = trained_resolution(tokenizer) if resolution is None else resolution
    if resolution is None:
        raise ConfigError(f"{tokenizer}: does not say what size of pictures it was trained on; give a resolution")
    if resolution < 1 or resolution % model.downsample_factor:
        raise ConfigError(f"{tokenizer}: {resolution} px is no multiple of its patches of {model.downsample_factor} px")
    check_finished(source)
    pictures = open_dataset(source)
    source_name = os.path.abspath(source) if os.path.exists(source) else str(source)
    manifest = describe(model, tokenizer, sha256, source_name, resolution, crops, len(pictures))
    writer = TokenWriter(out, manifest)
    text_conditioner = (
        None if model.text_config is None else TextConditioner(model.text_config, [source], best_device())
    )
    missing_caption = 0
    with tqdm(total=len(pictures), initial=writer.written, unit="picture", disable=None) as progress:
        while writer.written < len(pictures):
            rows = range(writer.written, min(writer.written + PICTURES_PER_PART, len(pictures)))
            part: list[Tokens] = []
            for batch in _batches(pictures, rows, resolution, crops, batch_size):
                part += _encode(model, text_conditioner, batch)
                if text_conditioner is not None:
                    missing_caption += sum(
                        text_conditioner.config.text_of(item.sample) is None for item in batch if item.crops
                    )
                progress.update(len(batch))
            writer.write(part)
    if missing_caption:
        tqdm.write(f"{tokenizer} is conditioned on captions or classes, and {missing_caption} pictures have none")
    shards = TokenShards(out)
    if not any(len(shards[row].values) for row in range(len(shards))):
        raise DataError(f"{source}: none of the pictures can be read")
    if not model.codebook_sizes:
        write_statistics(shards)
    return shards


def describe(
    model: Tokenizer, tokenizer: str, sha256: str, source: str, resolution: int, crops: CropRule, pictures: int
) -> TokenManifest:
    """Return the manifest of token shards that are encoded with these settings."""
    sizes, side = model.codebook_sizes, resolution // model.downsample_factor
    return TokenManifest(
        tokenizer=tokenizer if tokenizer in shipped() else str(locate(tokenizer).resolve()),
        sha256=sha256,
        codebook_sizes=sizes,
        branch_dims=model.branch_dims,
        tokens=side * side if model.tokens_on_grid else model.config.num_latent_tokens,
        grid_size=(side, side),
        tokens_on_grid=model.tokens_on_grid,
        resolution=resolution,
        crops=crops,
        source=source,
        pictures=pictures,
        fingerprint=fingerprint(source),
    )


def crops_of(sample: Sample, rule: CropRule, resolution: int) -> list[Crop]:
    """Return the crops of a picture; a picture with words gets no mirrored crops."""
    middle = centre_crop(sample.width, sample.height, resolution)
    if rule == "centre":
        return [middle]
    side = middle.side / TEN_CROP_MARGIN
    left, top, room = middle.left, middle.top, middle.side - side
    places = [(0.0, 0.0), (room, 0.0), (0.0, room), (room, room), (room / 2, room / 2)]
    plain = [Crop(left=left + x, top=top + y, side=side, resolution=resolution) for x, y in places]
    return plain if sample.words else plain + [dataclasses.replace(crop, flip=True) for crop in plain]


@dataclasses.dataclass(frozen=True)
class _Cropped:
    """The crops of a picture; empty if it could not be read."""

    sample: Sample
    crops: list[UInt8[np.ndarray, "resolution resolution 3"]]


def _batches(
    pictures: Dataset, rows: Iterable[int], resolution: int, rule: CropRule, batch_size: int
) -> Iterator[list[_Cropped]]:
    """Yield batches of consecutive pictures, with `batch_size` crops or slightly more; the last may have fewer."""
    batch: list[_Cropped] = []
    for row in rows:
        sample, cropped = Sample(image=b"", path=f"row {row}", width=0, height=0), []
        try:
            sample = pictures[row]
            picture = decode_sample(sample)
            cropped = [crop.pixels(picture) for crop in crops_of(sample, rule, resolution)]
        except PictureError as error:
            tqdm.write(f"left out: {error}")
        batch.append(_Cropped(sample, cropped))
        if sum(len(item.crops) for item in batch) >= batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def _encode(model: Tokenizer, text_conditioner: TextConditioner | None, batch: list[_Cropped]) -> list[Tokens]:
    crops = [crop for item in batch for crop in item.crops]
    text = None
    if text_conditioner is not None:
        text = text_conditioner.encode(
            [text_conditioner.config.text_of(item.sample) for item in batch for _ in item.crops]
        )
    values = np.zeros((0, 0, 0), np.int32)
    if crops:
        encoding = model.encode(from_uint8(np.stack(crops)).to(model.device), text)
        tokens = encoding.latents.half() if encoding.codes is None else encoding.codes.int()
        values = tokens.cpu().numpy()
    ends = np.cumsum([len(item.crops) for item in batch])
    return [
        Tokens(
            values=values[end - len(item.crops) : end],
            path=item.sample.path,
            label=item.sample.label,
            captions=item.sample.captions[
                : 1 if text_conditioner is not None and text_conditioner.config.conditioned_on == "captions" else None
            ],
        )
        for item, end in zip(batch, ends, strict=True)
    ]
