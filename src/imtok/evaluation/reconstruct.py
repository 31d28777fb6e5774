"""Pictures through a tokenizer and back, at their own size."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from imtok.config import ConfigError
from imtok.data.captions import make_captioner
from imtok.data.pictures import Picture, decode, encode, from_uint8, read_bytes, to_uint8
from imtok.data.readers import IMAGE_SUFFIXES
from imtok.data.sample import DataError, Sample
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import load
from imtok.tokenizers.text import Reader, Text


def reconstruct(
    tokenizer: str, images: Iterable[Path], out: Path, branches: bool = False, captions: str | None = None
) -> list[Path]:
    """Write OUT/NAME.png, and OUT/side_by_side/NAME.png with the original on the left.

    A picture that cannot be read is named and left out.

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
        ConfigError: no such tokenizer, one codebook where branches are wanted, captions for a tokenizer that hears of
            none, no picture, two pictures of one name, or an original that would be overwritten.
        MissingWeights: the network that reads the captions is not here.
    """
    files = list(find_pictures(images))
    names = [file.stem for file in files]
    if not files:
        raise ConfigError("no pictures to reconstruct")
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two pictures are called {max(names, key=names.count)}; reconstruct their folders one by one"
        )
    if any((out / f"{name}.png").resolve() == file.resolve() for name, file in zip(names, files, strict=True)):
        raise ConfigError(f"{out}: holds the pictures themselves; reconstructions there would overwrite them")
    model = load(tokenizer)
    if branches and len(model.codebook_sizes) < 2:
        raise ConfigError(f"{tokenizer}: has no branches to show; it is not a tokenizer of several codebooks")
    if captions is not None and model.hears is None:
        raise ConfigError(f"{tokenizer}: hears of no captions; leave --captions out")
    told = None if captions is None else Told(model, captions)
    written = []
    (out / "side_by_side").mkdir(parents=True, exist_ok=True)
    for file in tqdm(files, unit="picture", disable=None):
        try:
            picture = decode(read_bytes(file), str(file))
        except DataError as error:
            tqdm.write(f"left out: {error}")
            continue
        text = None if told is None else told.of(file)
        drawn = reconstruct_picture(model, picture, text)
        written.append(out / f"{file.stem}.png")
        written[-1].write_bytes(encode(drawn))
        row = [picture, drawn, *(each_branch(model, picture, text) if branches else ())]
        (out / "side_by_side" / f"{file.stem}.png").write_bytes(encode(np.concatenate(row, axis=1)))
    return written


class Told:
    """The captions that a user gives with pictures, read for a tokenizer.

    Args:
        tokenizer: hears of captions.
        captions: a table (.jsonl or .csv), or one caption for all pictures.

    Raises:
        DataError: the table cannot be read.
    """

    def __init__(self, tokenizer: Tokenizer, captions: str) -> None:
        assert tokenizer.hears is not None
        self._reader = Reader(tokenizer.hears, device=next(tokenizer.parameters()).device)
        table = captions.endswith((".jsonl", ".csv"))
        self._captioner = make_captioner(captions) if table else None
        self._caption = captions

    def of(self, file: Path) -> Text:
        """What the tokenizer is told of a picture; where there is no caption, nothing."""
        found = [self._caption]
        if self._captioner is not None:
            found = self._captioner(Sample(image=b"", path=str(file), width=1, height=1))
        caption = found[0] if found else None
        return self._reader.read([caption], [caption])


def reconstruct_picture(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> Picture:
    """One picture of any size through the tokenizer, at its own size."""
    images = from_uint8(picture)[None].to(next(tokenizer.parameters()).device)
    with torch.no_grad():
        return to_uint8(tokenizer.reconstruct(images, text))[0]


@torch.no_grad()
def each_branch(tokenizer: Tokenizer, picture: Picture, text: Text | None = None) -> list[Picture]:
    """The picture as each codebook alone would have it, the others set to zero."""
    height, width = picture.shape[:2]
    encoding = tokenizer.encode(from_uint8(picture)[None].to(next(tokenizer.parameters()).device), text)
    alone = [tokenizer.alone(encoding.latents, branch) for branch in range(len(tokenizer.codebook_sizes))]
    drawn = [tokenizer.decode(latents, text, encoding.grid_size) for latents in alone]
    return [to_uint8(images[:, :, :height, :width])[0] for images in drawn]


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and the pictures in the folders (sorted, sub-folders included).

    Raises:
        ConfigError: a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file or folder")
