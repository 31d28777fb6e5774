"""What can be evaluated: a tokenizer, a folder of pictures reconstructed by somebody, a codec, a model-free check."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.data.pictures import Picture, decode, encode, from_uint8, read_bytes, to_uint8
from imtok.data.readers import IMAGE_SUFFIXES
from imtok.data.rows import as_unicode
from imtok.data.sample import Sample
from imtok.evaluation.codecs import Setting, read_setting
from imtok.evaluation.metrics import bits_per_pixel
from imtok.evaluation.reconstruct import find_pictures
from imtok.evaluation.teachers import UNKNOWN, teachers_of_weights
from imtok.layers.collective import best_device
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.catalog import hash_of, load, locate, shipped
from imtok.tokenizers.text import TextConditioner

_STATED_RATE = re.compile(r"(.+)@([0-9]*\.?[0-9]+)")


@runtime_checkable
class DatasetPreview(Protocol):
    """A set before it is evaluated; every method goes through it from its beginning."""

    def samples(self) -> Iterable[Sample]:
        """The files, with what is known of them."""
        ...

    def prepared(self) -> Iterable[Picture]:
        """The readable pictures as they enter."""
        ...

    def readable(self, paths: Collection[str]) -> Iterable[str]:
        """Those of some paths whose pictures can be read to the end."""
        ...


@dataclass(frozen=True)
class File:
    """A file that a reconstructor has read, its SHA-256, and that of the pixels of the original that it stands for."""

    path: Path
    digest: bytes
    original: bytes


@dataclass(frozen=True)
class Reconstruction:
    """A picture after the bottleneck, at its own size.

    Attributes:
        picture: it.
        codes: where there are any.
        bits_per_pixel: where that is known.
        text: the caption or class that the tokenizer heard, if any.
        caption_bits: where that is known, of what it was told.
        file: where it was read from.
    """

    picture: Picture
    codes: Int[Tensor, "tokens codebooks"] | None = None
    bits_per_pixel: float | None = None
    text: str | None = None
    caption_bits: float | None = None
    file: File | None = None


class Reconstructor(ABC):
    """Turns pictures into reconstructions.

    Attributes:
        name: in tables and files.
        codebook_sizes: of a discrete tokenizer; empty otherwise.
        teachers: names of the networks that it was trained with; `UNKNOWN` stands for those that nobody here knows.
        is_check: whether it is a model-free check and no competitor.
        is_codec: whether it is JPEG or the like.
        compared_with: another reconstructor's name; None: the first one's.
        at_own_size: whether it wants each picture at its own size, whatever the evaluation's.
        sha256: of its weights, or of the hashes of the files that were read so far; None where there are none.
        rate_note: what one has to know of its rate on the present set.
    """

    name: str
    codebook_sizes: tuple[int, ...] = ()
    teachers: frozenset[str] = frozenset({UNKNOWN})
    is_check = False
    is_codec = False
    compared_with: str | None = None
    at_own_size = False
    sha256: str | None = None
    rate_note: str | None = None

    def begin(self, pictures: DatasetPreview) -> None:
        """Look at a set before it is evaluated."""
        return

    def add(self, file: File, path: str) -> None:
        """A file has been read, by whichever process, for the original at `path`.

        Raises:
            ConfigError: it was read for another original before.
        """
        return

    @abstractmethod
    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        """Reconstructions of pictures, of one size unless `at_own_size`; `samples` tells what they are.

        Raises:
            ConfigError: it cannot; one line with its name.
        """


class TokenizerReconstructor(Reconstructor):
    """A tokenizer in eval mode; one that hears of captions is told each picture's first."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        teachers: frozenset[str],
        data: Sequence[str | PathLike[str]] = (),
        sha256: str | None = None,
    ) -> None:
        self.name, self.tokenizer, self.teachers, self.sha256 = name, tokenizer, teachers, sha256
        self.codebook_sizes = tokenizer.codebook_sizes
        self.device = tokenizer.device
        self.text_conditioner = (
            None if tokenizer.text_config is None else TextConditioner(tokenizer.text_config, data, self.device)
        )

    @torch.no_grad()
    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        images, text = from_uint8(np.stack(pictures)).to(self.device), None
        texts: Sequence[str | None] = [None] * len(pictures)
        text_bits: Sequence[float | None] = [None] * len(pictures)
        if self.text_conditioner is not None:
            texts = self.texts_for(samples)
            text, text_bits = self.text_conditioner.encode(texts), list(self.text_conditioner.bits(texts))
        encoding = self.tokenizer.encode(images, text)
        height, width = encoding.image_size
        decoded = self.tokenizer.decode(encoding.latents, text, encoding.grid_size)
        if not decoded.isfinite().all():
            raise ConfigError(
                f"{self.name}: answers NaN or infinity to {samples[0].path} or one of its neighbours; its weights are "
                "broken"
            )
        drawn = to_uint8(decoded[:, :, :height, :width])
        rate = bits_per_pixel(encoding.latents.shape[1], self.tokenizer.bits_per_token, height, width)
        codes = [None] * len(drawn) if encoding.codes is None else encoding.codes.cpu()
        return [
            Reconstruction(one, of_it, rate, said, bits)
            for one, of_it, said, bits in zip(drawn, codes, texts, text_bits, strict=True)
        ]

    def texts_for(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        """What it is told of pictures: their captions, or their classes."""
        return [self.text_of(sample) for sample in samples]

    def text_of(self, sample: Sample) -> str | None:
        """What there is to be told of a picture."""
        assert self.tokenizer.text_config is not None
        return self.tokenizer.text_config.text_of(sample)


@dataclass
class FolderReconstructor(Reconstructor):
    """A folder with `NAME.png` (or another picture format) for every original called NAME, of the same size.

    Args:
        folder: it.
        rate: in bits per pixel, where somebody states it.
    """

    folder: Path
    rate: float | None = None
    at_own_size = True
    name: str = field(init=False)
    _files: dict[str, list[Path]] = field(init=False)
    _taken: dict[Path, tuple[str, bytes]] = field(init=False, default_factory=dict)
    _hash: Any = field(init=False, default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.name = str(self.folder)
        self.rate_note = None if self.rate is None else "as stated on the command line"
        if self.rate == 0:
            raise ConfigError(f"{self.folder}@0: the rate is a number of bits per pixel, such as {self.folder}@0.25")
        self._files = defaultdict(list)
        for file in find_pictures([self.folder]):
            name = as_unicode(file.relative_to(self.folder).as_posix())  # as the samples' paths are written
            self._files[_without_suffix(name)].append(file)
        if not self._files:
            raise ConfigError(f"{self.folder}: neither a run folder (it has no config.json) nor a folder of pictures")

    def begin(self, pictures: DatasetPreview) -> None:
        missing = {sample.path for sample in pictures.samples() if not self._named(sample.path)}
        first = next(iter(pictures.readable(missing)), None)  # a sound header may stand before broken pixels
        if first is not None:
            more = f" ({len(missing)} pictures have none)" if len(missing) > 1 else ""
            name = PurePosixPath(_without_suffix(first)).name
            raise ConfigError(f"{self.folder}: holds no reconstruction of {first}{more}; there should be a {name}.png")

    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        return [self._read(picture, sample.path) for picture, sample in zip(pictures, samples, strict=True)]

    def add(self, file: File, path: str) -> None:
        before, original = self._taken.setdefault(file.path, (path, file.original))
        if before != path:
            raise ConfigError(f"{file.path}: is it the reconstruction of {before} or of {path}? Keep their folders")
        if original != file.original:
            raise ConfigError(f"{file.path}: two sets have another {path} each; evaluate each with a folder of its own")
        self._hash.update(file.digest)
        self.sha256 = self._hash.hexdigest()

    def _read(self, original: Picture, path: str) -> Reconstruction:
        named = self._named(path)
        if len(named) > 1:  # originals may differ in nothing but their format
            named = [file for file in named if file.suffix == PurePosixPath(path).suffix] or named
        if len(named) > 1:
            raise ConfigError(f"{named[0]}: is it the reconstruction of {path}, or is {named[1].name}? Remove one")
        file = named[0]
        data = read_bytes(file)
        picture = decode(data, str(file))
        if picture.shape != original.shape:
            (height, width), (h, w) = original.shape[:2], picture.shape[:2]
            raise ConfigError(f"{file}: has {w} x {h} pixels, its original {width} x {height}")
        read = File(file, hashlib.sha256(data).digest(), hashlib.sha256(original.tobytes()).digest())
        return Reconstruction(picture, bits_per_pixel=self.rate, file=read)

    def _named(self, path: str) -> list[Path]:
        """Files that may be the reconstruction of an original."""
        stem = _without_suffix(path)
        return self._files.get(stem) or self._files.get(PurePosixPath(stem).name) or []


@dataclass
class CodecReconstructor(Reconstructor):
    """A codec at the rate of its own files, for comparison at equal rates."""

    is_codec = True
    name: str
    setting: Setting
    teachers = frozenset[str]()
    rate_note: str | None = field(init=False, default=None)
    _present: Setting = field(init=False)

    def begin(self, pictures: DatasetPreview) -> None:
        self._present, self.rate_note = self.setting.for_set(pictures.prepared)

    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        codec, quality = self._present.codec, self._present.quality
        assert quality is not None, "a set begins before it is reconstructed"
        pairs = [codec.compress(picture, quality) for picture in pictures]
        return [Reconstruction(picture, bits_per_pixel=rate) for picture, rate in pairs]


@dataclass
class SelfCheck(Reconstructor):
    """A damage of known kind, without any model: whoever gets other scores for it has other rules."""

    name: str
    damage: Callable[[Picture], Picture]
    teachers = frozenset[str]()
    is_check = True

    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        return [Reconstruction(self.damage(picture)) for picture in pictures]


def self_checks() -> list[SelfCheck]:
    """The same picture; JPEG of quality 30; halved and enlarged again."""
    return [
        SelfCheck("identity", lambda picture: picture),
        SelfCheck("jpeg-30", lambda picture: decode(encode(picture, "JPEG", quality=30))),
        SelfCheck("down-and-up", _down_and_up),
    ]


def check_name(source: str) -> None:
    """Raise where nothing has this name, without opening it.

    Raises:
        ConfigError: no codec, run, folder or file does; or a codec has no such setting.
    """
    stated = _STATED_RATE.fullmatch(source)
    if stated is not None and not Path(source).exists() and not Path(stated[1]).is_dir() and not read_setting(source):
        raise ConfigError(f"{source}: there is no folder {stated[1]}")
    if read_setting(source) is None and _stated(source) is None and not Path(source).exists():
        locate(source)


def open_reconstructor(source: str, data: Sequence[str | PathLike[str]] = ()) -> Reconstructor:
    """What a user names on the command line.

    Args:
        source: a shipped name, a run folder, another project's checkpoint or folder, a folder of reconstructed
            pictures (`FOLDER@BITS_PER_PIXEL` where their rate is known), or a codec (`jpeg:QUALITY`,
            `webp@BITS_PER_PIXEL`).
        data: what it will be shown; text features may be stored there.

    Raises:
        ConfigError: it is none of these.
    """
    setting = read_setting(source)
    if setting is not None:
        return CodecReconstructor(source, setting)
    stated = _stated(source)
    if stated is not None:
        return FolderReconstructor(*stated)
    path = locate(source)
    if path.is_dir() and not RunFolder(path).exists():
        return FolderReconstructor(path)
    name = path.name if path.is_file() else source if source in shipped() else Path(source).resolve().name
    return TokenizerReconstructor(name, load(source, best_device()), teachers_of_weights(path), data, hash_of(source))


def _stated(source: str) -> tuple[Path, float] | None:
    """A folder and its rate; None for whatever is called otherwise."""
    stated = _STATED_RATE.fullmatch(source)
    if stated is None or Path(source).exists() or not Path(stated[1]).is_dir():
        return None
    return Path(stated[1]), float(stated[2])


def _without_suffix(path: str) -> str:
    """A path without the suffix of its picture format; another dot may be part of the name."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else path


def _down_and_up(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((-(-width // 2), -(-height // 2)), Image.Resampling.LANCZOS)
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))
