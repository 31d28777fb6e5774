"""Batches for training: every batch is a function of the seed and the step, so resuming needs no state.

The global batch of a step is cut into equal, contiguous slices, one per rank: two processes see what one would see.
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
    """How pictures become batches."""

    crop: CropConfig = CropConfig()
    max_words: int = 8
    """Words per picture that enter the losses; of more, so many are drawn at random."""
    max_faces: int = 4
    """Likewise for faces."""
    drop_regions: float = 0.0
    """Share of words and faces that are left out, always the same ones: a detector of lower recall (InsightTok,
    Table 9). Crops do not depend on it."""
    drop_captions: float = 0.0
    """Share of pictures whose caption and class are withheld, anew at every sight: a tokenizer that hears of captions
    then also learns to do without."""
    num_workers: int = 0
    """Threads that prepare batches ahead. On few cores they take time from the training; 0 prepares between steps."""

    def __post_init__(self) -> None:
        if not (0 <= self.drop_regions <= 1 and 0 <= self.drop_captions <= 1):
            raise ConfigError("data: drop_regions and drop_captions must be in [0, 1]")
        if min(self.max_words, self.max_faces, self.num_workers) < 0:
            raise ConfigError("data: max_words, max_faces and num_workers must not be negative")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Pictures and what is known about them.

    Attributes:
        images: in [-1, 1].
        words: boxes in the pictures.
        faces: boxes and landmarks; faces without landmarks are left out.
        captions: one of each picture's, at random, or None (also where it is withheld).
        labels: class names as the data spell them, or None (likewise).
        paths: where the pictures came from.
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
        """Pictures start <= i < stop: a micro-batch."""
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

    Pictures with words or faces and plain ones each have a shuffled order of their own (see `order`); which of the two
    a place in a batch shows follows a fixed, evenly spread pattern. A picture that cannot be read is replaced by the
    next one of its kind, and named in the log.

    Args:
        data: anything that `open_dataset` reads, or a source.
        config: crops and regions.
        batch_size: of all ranks together.
        region_share: share of pictures with words or faces, to the thousandth; the others come from those without, or
            from the same pictures where all have some. None: all pictures alike, as they come, and no scan of the
            annotations beforehand.
        seed: of order and crops.
        rank: which slice of the batch; of `world_size`.
        world_size: number of slices.

    Raises:
        ConfigError: the batch cannot be cut evenly, or pictures with regions are wanted and there are none.
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
        """This rank's slice of the global batch of a step, counted from 0."""
        size = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * size
        return _collate([self._example(slot) for slot in range(first, first + size)])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Batch]]:
        """Steps start <= step < stop with their batches, in order; some are prepared ahead by `num_workers` threads."""
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
        """The picture in a place of the endless row of batches."""
        stream, position = split_slot(slot, self._share)
        rows = self._rows[stream]
        epoch, index = shuffled_index((self.seed, stream), len(rows), position)
        for attempt in range(len(rows)):
            row = int(rows[(index + attempt) % len(rows)])
            rng = np.random.default_rng((self.seed, 2 + stream, epoch, row))  # 0 and 1 are the orders'
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
    """Centre crops of at most `count` pictures, spread evenly over the data: always the same, for evaluation.

    A picture that cannot be read is replaced by the next one before the next place, and named in the log.

    Args:
        data: as for `Loader`.
        config: of which the resolution and the largest numbers of regions are used.
        count: how many pictures.
        batch_size: the last batch may be smaller.
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
    drawn_words = _draw(list(words), config.max_words, rng)
    drawn_faces = _draw([face for face in faces if face.can_be_aligned], config.max_faces, rng)
    caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else None
    withheld = config.drop_captions > 0 and rng.random() < config.drop_captions
    return _Example(
        pixels=crop.pixels(picture),
        words=drawn_words,
        faces=drawn_faces,
        caption=None if withheld else caption,
        label=None if withheld else sample.label,
        path=sample.path,
    )


def _detected(regions: list[_Region], kind: str, path: str, drop: float) -> list[_Region]:
    """The regions that a worse detector would still find: the same ones in every epoch and under every seed."""
    if not drop:
        return regions
    names = (f"{path}/{kind}/{index}".encode() for index in range(len(regions)))
    shares = (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) / 2**64 for name in names)
    return [region for region, share in zip(regions, shares, strict=True) if share >= drop]


def _draw(regions: list[_Region], most: int, rng: np.random.Generator) -> list[_Region]:
    if len(regions) <= most:
        return regions
    return [regions[index] for index in sorted(rng.choice(len(regions), most, replace=False))]


def _collate(examples: list[_Example]) -> Batch:
    return Batch(
        images=from_uint8(np.stack([example.pixels for example in examples])),
        words=_regions([example.words for example in examples]),
        faces=_regions([example.faces for example in examples], with_landmarks=True),
        captions=[example.caption for example in examples],
        labels=[example.label for example in examples],
        paths=[example.path for example in examples],
    )


def _regions(of_pictures: Sequence[Sequence[TextRegion | Face]], with_landmarks: bool = False) -> Regions:
    boxes = [region.box for regions in of_pictures for region in regions]
    if not boxes:
        return Regions.empty(with_landmarks)
    index = [picture for picture, regions in enumerate(of_pictures) for _ in regions]
    points = [face.landmarks for faces in of_pictures for face in faces if isinstance(face, Face)]
    landmarks = torch.tensor(points, dtype=torch.float32) if with_landmarks else None
    return Regions(torch.tensor(boxes, dtype=torch.float32), torch.tensor(index), landmarks)


@lru_cache(maxsize=2)  # every phase of a training asks again
def _split_by_regions(source: Dataset) -> tuple[Sequence[int], Sequence[int]]:
    """Rows without and rows with words or alignable faces."""
    rows = array("q"), array("q")
    for row, sample in enumerate(source.annotations()):
        rows[bool(sample.words) or any(face.can_be_aligned for face in sample.faces or [])].append(row)
    return rows
