"""Token batches for training: like picture batches, each is a function of the seed and the step alone."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from imtok.config import ConfigError
from imtok.data.order import shuffled_index, stretches
from imtok.data.sample import DataError
from imtok.data.token_shards import Tokens, TokenShards


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """A batch of tokenized pictures with captions and labels.

    Attributes:
        tokens: int codes or float latents.
        captions: one of each picture's captions (random in training, else the first), or None if it has none.
        labels: class names as in the data, or None if unknown.
        paths: path of each picture in its source.
    """

    tokens: Num[Tensor, "batch tokens width"]
    captions: list[str | None]
    labels: list[str | None]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(tokens=self.tokens.to(device), captions=self.captions, labels=self.labels, paths=self.paths)

    def part(self, start: int, stop: int) -> "TokenBatch":
        """Return the micro-batch of pictures start <= i < stop."""
        return TokenBatch(
            tokens=self.tokens[start:stop],
            captions=self.captions[start:stop],
            labels=self.labels[start:stop],
            paths=self.paths[start:stop],
        )


class TokenLoader:
    """Endless training batches of token shards; every epoch uses a random crop and a random caption of each picture.

    Args:
        shards: complete token shards.
        batch_size: number of pictures per step over all ranks.
        seed: random seed for order, crops and captions.
        rank: index of this process's slice of the batch.
        world_size: number of slices.

    Raises:
        ConfigError: the batch cannot be cut evenly.
        DataError: there are no pictures.
    """

    def __init__(
        self, shards: TokenShards, *, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"a batch of {batch_size} pictures cannot be cut into {world_size} equal slices")
        if not len(shards):
            raise DataError(f"{shards.folder}: no pictures to train on")
        self.shards, self.batch_size, self.seed = shards, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def batch(self, step: int) -> TokenBatch:
        """Return this rank's slice of the global batch of a step, counted from 0."""
        size = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * size
        return _collate([self._example(slot) for slot in range(first, first + size)])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, TokenBatch]]:
        """Yield steps start <= step < stop with their batches, in order."""
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        yield from ((step, self.batch(step)) for step in steps)

    def _example(self, slot: int) -> "_Example":
        count = len(self.shards)
        epoch, index = shuffled_index((self.seed, 0), count, slot)
        for attempt in range(count):
            row = (index + attempt) % count
            picture = self.shards[row]
            if len(picture.values):  # a picture that was unreadable when encoded has no crops
                return _example(picture, np.random.default_rng((self.seed, 1, epoch, row)))
        raise DataError(f"{self.shards.folder}: none of the pictures could be read when it was encoded")


def fixed_token_batches(shards: TokenShards, *, count: int, batch_size: int) -> Iterator[TokenBatch]:
    """Yield batches of at most `count` pictures, spread evenly over the shards, which are always the same.

    The shards are cut into `count` stretches, each represented by the first picture that has crops, with its first crop
    and caption.

    Args:
        shards: token shards of held-out pictures.
        count: maximum number of pictures.
        batch_size: number of pictures per batch; the last batch may be smaller.
    """
    count = min(count, len(shards))
    pictures = (
        next((picture for row in rows if len((picture := shards[row]).values)), None)
        for rows in stretches(len(shards), count)
    )
    examples = [_example(picture, None) for picture in pictures if picture is not None]
    for start in range(0, len(examples), batch_size):
        yield _collate(examples[start : start + batch_size])


@dataclass(frozen=True)
class _Example:
    values: Num[np.ndarray, "tokens width"]
    caption: str | None
    label: str | None
    path: str


def _example(picture: Tokens, rng: np.random.Generator | None) -> _Example:
    """Take a crop and a caption of a picture: at random, or the first ones if `rng` is None."""
    crop = 0 if rng is None else int(rng.integers(len(picture.values)))
    caption = None
    if picture.captions:
        caption = picture.captions[0 if rng is None else int(rng.integers(len(picture.captions)))]
    return _Example(picture.values[crop], caption, picture.label, picture.path)


def _collate(examples: list[_Example]) -> TokenBatch:
    values = np.stack([example.values for example in examples])
    values = values.astype(np.float32) if values.dtype.kind == "f" else values.astype(np.int64)
    return TokenBatch(
        tokens=torch.from_numpy(values),
        captions=[example.caption for example in examples],
        labels=[example.label for example in examples],
        paths=[example.path for example in examples],
    )
