"""Reconstructors: tokenizers, folders of pictures reconstructed elsewhere, codecs, and model-free self-checks."""

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
    """A set before it is evaluated; each method iterates over it from its beginning."""

    def samples(self) -> Iterable[Sample]:
        """Yield the samples of the set, with their annotations."""
        ...

    def prepared(self) -> Iterable[Picture]:
        """Yield the readable pictures as they enter the tokenizer."""
        ...

    def readable(self, paths: Collection[str]) -> Iterable[str]:
        """Yield those of some paths whose pictures can be decoded completely."""
        ...


@dataclass(frozen=True)
class File:
    """A file read by a reconstructor, its SHA-256, and the SHA-256 of the pixels of its original."""

    path: Path
    digest: bytes
    original: bytes


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed picture at the size at which it entered the reconstructor.

    Attributes:
        picture: the reconstructed picture.
        codes: token codes of a discrete tokenizer, else None.
        bits_per_pixel: rate of the tokens or of the file; None if unknown.
        text: the caption or class that the tokenizer was conditioned on, if any.
        caption_bits: bits of that text that the decoder receives, 0 if none; None without text conditioning.
        file: the file from which the picture was read, if any.
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
        name: name in tables and files.
        codebook_sizes: codebook sizes of a discrete tokenizer; empty otherwise.
        teachers: names of the networks that it was trained with; `UNKNOWN` stands for teachers that are not known.
        is_check: whether it is a model-free self-check, which is not compared with others.
        is_codec: whether it is a codec such as JPEG.
        compared_with: name of the reconstructor that it is compared with; None: the first one.
        at_own_size: whether it takes each picture at its own size, regardless of the evaluation's size.
        sha256: hash of its weights, or of the hashes of the files read so far; None if there are neither.
        rate_note: note on its rate on the current set.
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
        """Prepare for a set before it is evaluated."""
        return

    def add(self, file: File, path: str) -> None:
        """Record that a file was read, on any process, as the reconstruction of the original at `path`.

        Raises:
            ConfigError: the file was already read as the reconstruction of another original.
        """
        return

    @abstractmethod
    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        """Reconstruct a batch of pictures.

        Args:
            pictures: pictures, all of one size unless `at_own_size`.
            samples: the sample of each picture, with its path and captions.

        Raises:
            ConfigError: the reconstruction failed; a message of one line with the reconstructor's name.
        """


class TokenizerReconstructor(Reconstructor):
    """A tokenizer in eval mode; one with a text condition receives each picture's first caption, or its class."""

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
                f"{self.name}: outputs NaN or infinity for {samples[0].path} or one of its neighbours; its weights are "
                "broken"
            )
        reconstructed = to_uint8(decoded[:, :, :height, :width])
        rate = bits_per_pixel(encoding.latents.shape[1], self.tokenizer.bits_per_token, height, width)
        codes = [None] * len(reconstructed) if encoding.codes is None else encoding.codes.cpu()
        return [
            Reconstruction(picture, picture_codes, rate, caption, bits)
            for picture, picture_codes, caption, bits in zip(reconstructed, codes, texts, text_bits, strict=True)
        ]

    def texts_for(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        """Return the text condition of each picture: its caption or class."""
        return [self.text_of(sample) for sample in samples]

    def text_of(self, sample: Sample) -> str | None:
        """Return the caption or class of a picture, whichever the tokenizer is conditioned on; None if it has none."""
        assert self.tokenizer.text_config is not None
        return self.tokenizer.text_config.text_of(sample)


@dataclass
class FolderReconstructor(Reconstructor):
    """A folder with `NAME.png` (or another picture format) for every original called NAME, of the same size.

    If originals lie in folders of their own, the last folders before the name may be kept: `b/c.png` for `a/b/c.jpg`.

    Args:
        folder: the folder of reconstructed pictures.
        rate: rate in bits per pixel as stated by the user; None if unknown.
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
            name = as_unicode(file.relative_to(self.folder).as_posix())  # spelled like the samples' paths
            self._files[_without_suffix(name)].append(file)
        if not self._files:
            raise ConfigError(f"{self.folder}: neither a run folder (it has no config.json) nor a folder of pictures")

    def begin(self, pictures: DatasetPreview) -> None:
        missing = {sample.path for sample in pictures.samples() if not self._candidates(sample.path)}
        first = next(iter(pictures.readable(missing)), None)  # the header may be intact although the pixels are corrupt
        if first is not None:
            count_note = f" ({len(missing)} pictures have none)" if len(missing) > 1 else ""
            name = PurePosixPath(_without_suffix(first)).name
            raise ConfigError(
                f"{self.folder}: holds no reconstruction of {first}{count_note}; there should be a {name}.png"
            )

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
        candidates = self._candidates(path)
        if len(candidates) > 1:  # two originals may have the same name in different formats
            candidates = [file for file in candidates if file.suffix == PurePosixPath(path).suffix] or candidates
        if len(candidates) > 1:
            raise ConfigError(
                f"{candidates[0]}: is it the reconstruction of {path}, or is {candidates[1].name}? Remove one"
            )
        file = candidates[0]
        data = read_bytes(file)
        picture = decode(data, str(file))
        if picture.shape != original.shape:
            (height, width), (h, w) = original.shape[:2], picture.shape[:2]
            raise ConfigError(f"{file}: has {w} x {h} pixels, its original {width} x {height}")
        read = File(file, hashlib.sha256(data).digest(), hashlib.sha256(original.tobytes()).digest())
        return Reconstruction(picture, bits_per_pixel=self.rate, file=read)

    def _candidates(self, path: str) -> list[Path]:
        """Return the files that may be the reconstruction of an original."""
        parts = PurePosixPath(_without_suffix(path)).parts
        endings = ("/".join(parts[start:]) for start in range(len(parts)))  # the longest first
        return next((self._files[ending] for ending in endings if ending in self._files), [])


@dataclass
class CodecReconstructor(Reconstructor):
    """A codec, with the rate of its own files, for comparison at equal rates."""

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
    """A model-free degradation: evaluations that disagree on its scores use different metric definitions."""

    name: str
    damage: Callable[[Picture], Picture]
    teachers = frozenset[str]()
    is_check = True

    def reconstruct(self, pictures: Sequence[Picture], samples: Sequence[Sample]) -> list[Reconstruction]:
        return [Reconstruction(self.damage(picture)) for picture in pictures]


def self_checks() -> list[SelfCheck]:
    """Return the self-checks: identity, JPEG at quality 30, and downsampling by 2 followed by upsampling."""
    return [
        SelfCheck("identity", lambda picture: picture),
        SelfCheck("jpeg-30", lambda picture: decode(encode(picture, "JPEG", quality=30))),
        SelfCheck("down-and-up", _down_and_up),
    ]


def check_name(source: str) -> None:
    """Check that a reconstructor's name exists, without opening it.

    Raises:
        ConfigError: no codec, run, folder or file has this name, or the codec has no such setting.
    """
    stated = _STATED_RATE.fullmatch(source)
    if stated is not None and not Path(source).exists() and not Path(stated[1]).is_dir() and not read_setting(source):
        raise ConfigError(f"{source}: there is no folder {stated[1]}")
    if read_setting(source) is None and _parse_stated_rate(source) is None and not Path(source).exists():
        locate(source)


def open_reconstructor(source: str, data: Sequence[str | PathLike[str]] = ()) -> Reconstructor:
    """Open a reconstructor by its name on the command line.

    Args:
        source: a shipped name, a run folder, another project's checkpoint or folder, a folder of reconstructed
            pictures (`FOLDER@BITS_PER_PIXEL` where their rate is known), or a codec (`jpeg:QUALITY`,
            `webp@BITS_PER_PIXEL`).
        data: places of the sets that it will reconstruct; text features may be stored there.

    Raises:
        ConfigError: the name is none of these.
    """
    setting = read_setting(source)
    if setting is not None:
        return CodecReconstructor(source, setting)
    stated = _parse_stated_rate(source)
    if stated is not None:
        return FolderReconstructor(*stated)
    path = locate(source)
    if path.is_dir() and not RunFolder(path).exists():
        return FolderReconstructor(path)
    name = path.name if path.is_file() else source if source in shipped() else Path(source).resolve().name
    return TokenizerReconstructor(name, load(source, best_device()), teachers_of_weights(path), data, hash_of(source))


def _parse_stated_rate(source: str) -> tuple[Path, float] | None:
    """Return the folder and rate of `FOLDER@BITS_PER_PIXEL`; None for any other name."""
    stated = _STATED_RATE.fullmatch(source)
    if stated is None or Path(source).exists() or not Path(stated[1]).is_dir():
        return None
    return Path(stated[1]), float(stated[2])


def _without_suffix(path: str) -> str:
    """Remove the suffix of a picture format from a path; any other dot may be part of the name."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else path


def _down_and_up(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((-(-width // 2), -(-height // 2)), Image.Resampling.LANCZOS)
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))
