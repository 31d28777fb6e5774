"""Reconstruction of picture files by a tokenizer, at their own size."""

import os
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from imtok.config import ConfigError
from imtok.data.addresses import list_files
from imtok.data.captions import make_captioner
from imtok.data.pictures import Picture, decode, encode, from_uint8, read_bytes, to_uint8
from imtok.data.readers import IMAGE_SUFFIXES
from imtok.data.rows import as_unicode
from imtok.data.sample import DataError, Sample
from imtok.layers.collective import best_device
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import load
from imtok.tokenizers.text import Text, TextConditioner


def reconstruct(
    tokenizer: str | PathLike[str],
    images: Iterable[str | PathLike[str]],
    out: str | PathLike[str],
    branches: bool = False,
    captions: str | None = None,
) -> list[Path]:
    """Write OUT/NAME.png, and OUT_side_by_side/NAME.png with the original on the left.

    A picture that cannot be read is reported and left out. OUT contains only reconstructions, so that other commands
    can read it as a folder of reconstructed pictures.

    Args:
        tokenizer: a run folder, a shipped name, or another project's checkpoint.
        images: picture files, or folders of them.
        out: output folder.
        branches: whether the side-by-side pictures also show the reconstruction from each codebook alone, with the
            others set to zero (FQGAN, Figure 3).
        captions: for a tokenizer that is conditioned on captions, a JSONL or CSV table with an image and a caption
            column, or one caption for all pictures. Without it, or for a picture without a caption, the tokenizer
            receives no text.

    Returns:
        The paths of the reconstructions.

    Raises:
        ConfigError: no such tokenizer or a broken one, a single codebook with `branches`, captions for a tokenizer that
            is not conditioned on captions, or only of other pictures, no picture, two pictures of the same name, or an
            original that would be overwritten.
        MissingWeights: the weights of the text encoder are not available.
    """
    files, out = list(find_pictures(map(Path, images))), Path(out)
    names = [file.stem for file in files]
    if not files:
        raise ConfigError("no pictures to reconstruct")
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two pictures are called {max(names, key=names.count)}; reconstruct their folders one by one"
        )
    if any((out / f"{name}.png").resolve() == file.resolve() for name, file in zip(names, files, strict=True)):
        raise ConfigError(f"{out}: holds the pictures themselves; reconstructions there would overwrite them")
    model = load(tokenizer, best_device())
    if branches and len(model.codebook_sizes) < 2:
        raise ConfigError(f"{tokenizer}: has no branches to show; it is not a tokenizer of several codebooks")
    if captions is not None and model.text_config is None:
        raise ConfigError(f"{tokenizer}: is not conditioned on captions; leave --captions out")
    captions_by_file = [None] * len(files) if captions is None else captions_of(files, captions)
    text_conditioner = (
        None
        if captions is None or model.text_config is None
        else TextConditioner(model.text_config, device=best_device())
    )
    if text_conditioner is not None:
        text_conditioner.prepare(caption for caption in captions_by_file if caption is not None)
    if model.text_config is not None and (missing_caption := captions_by_file.count(None)):
        tqdm.write(
            f"{tokenizer} is conditioned on captions, and {missing_caption} of {len(files)} pictures have none; "
            "see --captions"
        )
    written, side_by_side_folder = [], side_by_side(out)
    for folder in (out, side_by_side_folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, caption in zip(tqdm(files, unit="picture", disable=None), captions_by_file, strict=True):
        try:
            picture = decode(read_bytes(file), str(file))
        except DataError as error:
            tqdm.write(f"left out: {error}")
            continue
        text = None if text_conditioner is None else text_conditioner.encode([caption])
        reconstruction = reconstruct_picture(model, picture, text)
        written.append(out / f"{file.stem}.png")
        written[-1].write_bytes(encode(reconstruction))
        row = [picture, reconstruction, *(reconstruct_each_codebook(model, picture, text) if branches else ())]
        (side_by_side_folder / f"{file.stem}.png").write_bytes(encode(np.concatenate(row, axis=1)))
    return written


def side_by_side(out: Path) -> Path:
    """Return the folder in which originals and reconstructions are stored side by side."""
    place = Path(os.path.abspath(out))  # also resolves "." to a folder name
    return place.with_name(f"{place.name}_side_by_side")


def captions_of(files: Sequence[Path], captions: str) -> list[str | None]:
    """Return the caption that a user gives to each picture, or None.

    Args:
        files: the picture files.
        captions: a table (.jsonl or .csv) that names the pictures by path, or by as many trailing parts of the path as
            distinguish them, down to the file name; or one caption for all pictures.

    Raises:
        ConfigError: the table names none of the pictures, or `captions` is a file of another kind.
        DataError: the table cannot be read.
    """
    if not captions.lower().endswith((".jsonl", ".csv")):
        if os.path.isfile(captions):  # so it is not a caption
            raise ConfigError(f"{captions}: captions of pictures are listed in a .jsonl or .csv")
        return [as_unicode(captions)] * len(files)
    captioner = make_captioner(captions)
    paths = (Path(os.path.abspath(file)).as_posix() for file in files)
    caption_lists = (captioner(Sample(image=b"", path=path, width=1, height=1)) for path in paths)
    found = [own[0] if own else None for own in caption_lists]
    if not any(found):
        raise ConfigError(f"{captions}: has captions of none of the {len(files)} pictures")
    return found


def reconstruct_picture(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> Picture:
    """Reconstruct one picture of any size, at its own size.

    Raises:
        ConfigError: the tokenizer outputs NaN or infinity.
    """
    images = from_uint8(picture)[None].to(tokenizer.device)
    with torch.no_grad():
        return _to_picture(tokenizer.reconstruct(images, text))


@torch.no_grad()
def reconstruct_each_codebook(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> list[Picture]:
    """Reconstruct a picture from each codebook alone, with the others set to zero."""
    height, width = picture.shape[:2]
    encoding = tokenizer.encode(from_uint8(picture)[None].to(tokenizer.device), text)
    single_codebook_latents = [
        tokenizer.keep_codebook(encoding.latents, branch) for branch in range(len(tokenizer.codebook_sizes))
    ]
    decoded = [tokenizer.decode(latents, text, encoding.grid_size) for latents in single_codebook_latents]
    return [_to_picture(images[:, :, :height, :width]) for images in decoded]


def _to_picture(images: Float[Tensor, "1 3 height width"]) -> Picture:
    if not images.isfinite().all():
        raise ConfigError("the tokenizer outputs NaN or infinity; its weights are broken")
    return to_uint8(images)[0]


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the given files, and the pictures in the given folders (sorted, including subfolders).

    Raises:
        ConfigError: a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from (path / name for name in list_files(path, deep=True) if name.lower().endswith(IMAGE_SUFFIXES))
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file or folder")
