"""Pictures through a tokenizer and back, at their own size."""

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

    A picture that cannot be read is named and left out. So OUT holds reconstructions alone, for whatever reads it next.

    Args:
        tokenizer: a run folder, a shipped name, or another project's checkpoint.
        images: picture files, or folders of them.
        out: folder.
        branches: side by side also show what each codebook says alone, the others set to zero (FQGAN, Figure 3).
        captions: for a tokenizer that hears of them, a JSONL or CSV with an image and a caption column, or the caption
            of all pictures. Without it, or where a picture has none, it is told nothing.

    Returns:
        The reconstructions.

    Raises:
        ConfigError: no such tokenizer or a broken one, one codebook where branches are wanted, captions for a tokenizer
            that hears of none, or of other pictures, no picture, two pictures of one name, or an original that would be
            overwritten.
        MissingWeights: the network that reads the captions is not here.
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
        raise ConfigError(f"{tokenizer}: hears of no captions; leave --captions out")
    told = [None] * len(files) if captions is None else captions_of(files, captions)
    text_conditioner = (
        None
        if captions is None or model.text_config is None
        else TextConditioner(model.text_config, device=best_device())
    )
    if text_conditioner is not None:
        text_conditioner.prepare(caption for caption in told if caption is not None)
    if model.text_config is not None and (missing_caption := told.count(None)):
        tqdm.write(
            f"{tokenizer} hears captions, and {missing_caption} of {len(files)} pictures have none; see --captions"
        )
    written, sheets = [], side_by_side(out)
    for folder in (out, sheets):
        folder.mkdir(parents=True, exist_ok=True)
    for file, caption in zip(tqdm(files, unit="picture", disable=None), told, strict=True):
        try:
            picture = decode(read_bytes(file), str(file))
        except DataError as error:
            tqdm.write(f"left out: {error}")
            continue
        text = None if text_conditioner is None else text_conditioner.encode([caption])
        drawn = reconstruct_picture(model, picture, text)
        written.append(out / f"{file.stem}.png")
        written[-1].write_bytes(encode(drawn))
        row = [picture, drawn, *(reconstruct_each_codebook(model, picture, text) if branches else ())]
        (sheets / f"{file.stem}.png").write_bytes(encode(np.concatenate(row, axis=1)))
    return written


def side_by_side(out: Path) -> Path:
    """Where originals and reconstructions stand beside each other."""
    place = Path(os.path.abspath(out))  # of "." the name, too
    return place.with_name(f"{place.name}_side_by_side")


def captions_of(files: Sequence[Path], captions: str) -> list[str | None]:
    """What a user says of pictures.

    Args:
        files: the pictures.
        captions: a table (.jsonl or .csv) that names them by path, or as much of it as tells them apart, down to the
            file's name; or one caption for all.

    Raises:
        ConfigError: the table names none of them, or a file that is no table.
        DataError: the table cannot be read.
    """
    if not captions.lower().endswith((".jsonl", ".csv")):
        if os.path.isfile(captions):  # and is no caption
            raise ConfigError(f"{captions}: captions of pictures are listed in a .jsonl or .csv")
        return [as_unicode(captions)] * len(files)
    captioner = make_captioner(captions)
    places = (Path(os.path.abspath(file)).as_posix() for file in files)
    listed = (captioner(Sample(image=b"", path=place, width=1, height=1)) for place in places)
    found = [those[0] if those else None for those in listed]
    if not any(found):
        raise ConfigError(f"{captions}: has captions of none of the {len(files)} pictures")
    return found


def reconstruct_picture(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> Picture:
    """One picture of any size through the tokenizer, at its own size.

    Raises:
        ConfigError: it answers NaN or infinity.
    """
    images = from_uint8(picture)[None].to(tokenizer.device)
    with torch.no_grad():
        return _picture(tokenizer.reconstruct(images, text))


@torch.no_grad()
def reconstruct_each_codebook(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> list[Picture]:
    """The picture as each codebook alone would have it, the others set to zero."""
    height, width = picture.shape[:2]
    encoding = tokenizer.encode(from_uint8(picture)[None].to(tokenizer.device), text)
    alone = [tokenizer.keep_codebook(encoding.latents, branch) for branch in range(len(tokenizer.codebook_sizes))]
    drawn = [tokenizer.decode(latents, text, encoding.grid_size) for latents in alone]
    return [_picture(images[:, :, :height, :width]) for images in drawn]


def _picture(images: Float[Tensor, "1 3 height width"]) -> Picture:
    if not images.isfinite().all():
        raise ConfigError("the tokenizer answers NaN or infinity; its weights are broken")
    return to_uint8(images)[0]


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and the pictures in the folders (sorted, sub-folders included).

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
