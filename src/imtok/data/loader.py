"""Batches for training: every batch is a function of the seed and the step, so resuming needs no state.

The global batch of a step is cut into equal, contiguous slices, one per rank; it is the same for any number of ranks.
"""

import hashlib
import itertools
import logging
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from os import PathLike
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imtok.config import ConfigError, config
from imtok.data.order import shuffled_index, split_slot, stretches
from imtok.data.pictures import decode_sample, from_uint8
from imtok.data.readers import open_dataset
from imtok.data.sample import Dataset, Face, PictureError, Sample, TextRegion
from imtok.data.transforms import Crop, CropConfig, centre_crop, random_crop
from imtok.layers.crops import Regions

_logger = logging.getLogger(__name__)
_Region = TypeVar("_Region", TextRegion, Face)


@config
class DataConfig:
    """How pictures are cropped and combined into batches."""

    crop: CropConfig = CropConfig()
    max_words: int = 8
    """Maximum number of words per picture that enter the losses; if a picture has more, a random subset is used."""
    max_faces: int = 4
    """Maximum number of faces per picture that enter the losses, as for `max_words`."""
    drop_regions: float = 0.0
    """Fraction of words and faces that are left out, always the same ones, to simulate a detector of lower recall
    (InsightTok, Table 9). Crops do not depend on it."""
    drop_captions: float = 0.0
    """Fraction of pictures whose caption and class are dropped, chosen anew in every epoch, so that a tokenizer that is
    conditioned on captions also learns to work without them."""
    num_workers: int = 0
    """Threads that prepare batches ahead. On few cores they slow down training; 0 prepares batches between steps."""

    def __post_init__(self) -> None:
        if not (0 <= self.drop_regions <= 1 and 0 <= self.drop_captions <= 1):
            raise ConfigError("data: drop_regions and drop_captions must be in [0, 1]")
        if min(self.max_words, self.max_faces, self.num_workers) < 0:
            raise ConfigError("data: max_words, max_faces and num_workers must not be negative")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of cropped pictures and their annotations.

    Attributes:
        images: pixel values in [-1, 1].
        words: boxes in the cropped pictures.
        faces: boxes and landmarks; faces without landmarks are left out.
        captions: a random one of each picture's captions, or None if it has none or they were dropped.
        labels: class names as in the data, or None if unknown or dropped.
        paths: path of each picture in its source.
    """

    images: Float[Tensor, "batch 3 resolution resolution"]
    words: Regions
    faces: Regions
    captions: list[str | None]
    labels: list[str | None]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        images = self.images.to(device)
        return replace(self, images=images, words=self.words.to(device), faces=self.faces.to(device))

    def part(self, start: int, stop: int) -> "Batch":
        """Return the micro-batch of pictures start <= i < stop."""
        return Batch(
            images=self.images[start:stop],
            words=self.words.in_images(start, stop),
            faces=self.faces.in_images(start, stop),
            captions=self.captions[start:stop],
            labels=self.labels[start:stop],
            paths=self.paths[start:stop],
        )


class Loader:
    """Endless training batches of a data source.

    Pictures with words or faces and pictures without are shuffled separately (see `order`); which of the two kinds
    fills a slot of a batch follows a fixed, evenly spread pattern. A picture that cannot be read is replaced by the
    next one of its kind, and a warning is logged.

    Args:
        data: a path that `open_dataset` reads, or a dataset.
        config: options for crops and regions.
        batch_size: number of pictures per step over all ranks.
        region_share: fraction of pictures with words or faces, rounded to a fraction with a denominator of at most
            1000; the other pictures have none, unless all pictures of the data do. None: both kinds are shuffled
            together, and the annotations are not scanned beforehand.
        seed: random seed for order and crops.
        rank: index of this process's slice of the batch.
        world_size: number of slices.

    Raises:
        ConfigError: the batch cannot be cut evenly, there are no pictures, or `region_share` requires words or faces
            and no picture has any.
        DataError: the data cannot be read.
    """

    def __init__(
        self,
        data: str | PathLike[str] | Dataset,
        config: DataConfig,
        *,
        batch_size: int,
        region_share: float | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"a batch of {batch_size} pictures cannot be cut into {world_size} equal slices")
        if region_share is not None and not 0 <= region_share <= 1:
            raise ConfigError(f"region_share = {region_share} must be in [0, 1]")
        self.source = open_dataset(data) if isinstance(data, str | PathLike) else data
        if not len(self.source):
            raise ConfigError(f"{data}: no pictures to train on")
        self.config, self.seed = config, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._unreadable: set[str] = set()
        self._share = Fraction(0)
        self._rows: tuple[Sequence[int], Sequence[int]] = range(len(self.source)), []  # plain, with regions
        if region_share is not None:
            self._share = Fraction(region_share).limit_denominator(1000)
            plain, regional = _split_by_regions(self.source)
            if self._share and not regional:
                raise ConfigError(f"region_share is {region_share}, but no picture has words or faces; annotate them")
            self._rows = plain or regional, regional

    def batch(self, step: int) -> Batch:
        """Return this rank's slice of the global batch of a step, counted from 0."""
        size = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * size
        return _collate([self._example(slot) for slot in range(first, first + size)])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield steps start <= step < stop with their batches, in order; `num_workers` threads prepare them ahead."""
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        workers = self.config.num_workers
        if not workers:
            yield from ((step, self.batch(step)) for step in steps)
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        try:
            ahead = deque((step, pool.submit(self.batch, step)) for step in itertools.islice(steps, 2 * workers))
            while ahead:
                step, future = ahead.popleft()
                batch = future.result()
                ahead.extend((step, pool.submit(self.batch, step)) for step in itertools.islice(steps, 1))
                yield step, batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _example(self, slot: int) -> "_Example":
        """Return the example in a slot of the endless sequence of batches, counted over all ranks."""
        stream, position = split_slot(slot, self._share)
        rows = self._rows[stream]
        epoch, index = shuffled_index((self.seed, stream), len(rows), position)
        for attempt in range(len(rows)):
            row = int(rows[(index + attempt) % len(rows)])
            rng = np.random.default_rng((self.seed, 2 + stream, epoch, row))  # 0 and 1 seed the orders
            try:
                sample = self.source[row]
                return _example(sample, random_crop(sample, self.config.crop, rng), self.config, rng)
            except PictureError as error:
                if str(error) not in self._unreadable:
                    self._unreadable.add(str(error))
                    _logger.warning("left out: %s", error)
        raise PictureError("none of the pictures can be read")


def fixed_batches(
    data: str | PathLike[str] | Dataset, config: DataConfig, *, count: int, batch_size: int
) -> Iterator[Batch]:
    """Yield centre crops of at most `count` pictures, spread evenly over the data; always the same, for evaluation.

    The data are cut into `count` stretches, each represented by its first picture that can be read; a warning is logged
    for each unreadable one.

    Args:
        data: a path that `open_dataset` reads, or a dataset.
        config: only its resolution, `max_words` and `max_faces` are used.
        count: maximum number of pictures.
        batch_size: number of pictures per batch; the last batch may be smaller.
    """
    source = open_dataset(data) if isinstance(data, str | PathLike) else data
    count = min(count, len(source))
    config = replace(config, drop_regions=0.0, drop_captions=0.0)
    examples = []
    for rows in stretches(len(source), count):
        for row in rows:
            try:
                sample = source[row]
                crop = centre_crop(sample.width, sample.height, config.crop.resolution)
                examples.append(_example(sample, crop, config, np.random.default_rng(row)))
                break
            except PictureError as error:
                _logger.warning("left out: %s", error)
        if len(examples) == batch_size:
            yield _collate(examples)
            examples = []
    if examples:
        yield _collate(examples)


@dataclass(frozen=True, kw_only=True)
class _Example:
    """One picture of a batch, cropped."""

    pixels: UInt8[np.ndarray, "resolution resolution 3"]
    words: list[TextRegion]
    faces: list[Face]
    caption: str | None
    label: str | None
    path: str


def _example(sample: Sample, crop: Crop, config: DataConfig, rng: np.random.Generator) -> _Example:
    picture = decode_sample(sample)
    words = crop.words(_detected(sample.words or [], "word", sample.path, config.drop_regions))
    faces = crop.faces(_detected(sample.faces or [], "face", sample.path, config.drop_regions))
    drawn_words = _subsample(list(words), config.max_words, rng)
    drawn_faces = _subsample([face for face in faces if face.can_be_aligned], config.max_faces, rng)
    caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else None
    dropped = config.drop_captions > 0 and rng.random() < config.drop_captions
    return _Example(
        pixels=crop.pixels(picture),
        words=drawn_words,
        faces=drawn_faces,
        caption=None if dropped else caption,
        label=None if dropped else sample.label,
        path=sample.path,
    )


def _detected(regions: list[_Region], kind: str, path: str, drop: float) -> list[_Region]:
    """Return the regions left when a fraction `drop` is removed: the same ones in every epoch and for every seed."""
    if not drop:
        return regions
    names = (f"{path}/{kind}/{index}".encode() for index in range(len(regions)))
    shares = (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) / 2**64 for name in names)
    return [region for region, share in zip(regions, shares, strict=True) if share >= drop]


def _subsample(regions: list[_Region], limit: int, rng: np.random.Generator) -> list[_Region]:
    if len(regions) <= limit:
        return regions
    return [regions[index] for index in sorted(rng.choice(len(regions), limit, replace=False))]


def _collate(examples: list[_Example]) -> Batch:
    return Batch(
        images=from_uint8(np.stack([example.pixels for example in examples])),
        words=_regions([example.words for example in examples]),
        faces=_regions([example.faces for example in examples], with_landmarks=True),
        captions=[example.caption for example in examples],
        labels=[example.label for example in examples],
        paths=[example.path for example in examples],
    )


def _regions(regions_per_picture: Sequence[Sequence[TextRegion | Face]], with_landmarks: bool = False) -> Regions:
    boxes = [region.box for regions in regions_per_picture for region in regions]
    if not boxes:
        return Regions.empty(with_landmarks)
    index = [picture for picture, regions in enumerate(regions_per_picture) for _ in regions]
    points = [face.landmarks for faces in regions_per_picture for face in faces if isinstance(face, Face)]
    landmarks = torch.tensor(points, dtype=torch.float32) if with_landmarks else None
    return Regions(torch.tensor(boxes, dtype=torch.float32), torch.tensor(index), landmarks)


@lru_cache(maxsize=2)  # called again in each phase of a training run
def _split_by_regions(source: Dataset) -> tuple[Sequence[int], Sequence[int]]:
    """Return the rows without and the rows with words or alignable faces."""
    rows = array("q"), array("q")
    for row, sample in enumerate(source.annotations()):
        rows[bool(sample.words) or any(face.can_be_aligned for face in sample.faces or [])].append(row)
    return rows
