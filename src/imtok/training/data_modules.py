"""What a run trains on: pictures for a tokenizer, tokens for a generator."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from imtok.config import ConfigError
from imtok.data.loader import DataConfig, Loader
from imtok.data.sample import Dataset
from imtok.data.token_loader import TokenLoader
from imtok.data.token_shards import TokenShards
from imtok.layers.collective import rank, world_size
from imtok.training.run import Phase, TrainingConfig

_LOOKED_AT = 32


@runtime_checkable
class BatchLoader(Protocol):
    """BatchLoader by step; a batch knows `to(device)` and `part(start, stop)`."""

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Steps start <= step < stop with this rank's part of their batches."""
        ...


@runtime_checkable
class DataModule(Protocol):
    """Something to train on."""

    def __len__(self) -> int:
        """How many pictures there are."""
        ...

    def loader(self, phase: Phase, batch_size: int, seed: int) -> BatchLoader:
        """The batches of a phase.

        Raises:
            ConfigError: a batch that cannot be cut among the ranks, or pictures without what the phase wants.
        """
        ...


class ImageDataModule:
    """Pictures, cropped.

    Args:
        source: of the pictures.
        config: crops and regions.
    """

    def __init__(self, source: Dataset, config: DataConfig) -> None:
        self.source, self.config = source, config

    def __len__(self) -> int:
        return len(self.source)

    def loader(self, phase: Phase, batch_size: int, seed: int) -> BatchLoader:
        return Loader(
            self.source,
            self.config,
            region_share=phase.region_share,
            batch_size=batch_size,
            seed=seed,
            rank=rank(),
            world_size=world_size(),
        )


class TokenDataModule:
    """Tokens of pictures.

    Args:
        shards: where they lie.
    """

    def __init__(self, shards: TokenShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def loader(self, phase: Phase, batch_size: int, seed: int) -> BatchLoader:
        return TokenLoader(self.shards, batch_size=batch_size, seed=seed, rank=rank(), world_size=world_size())


def evaluation_batch_size(training: TrainingConfig) -> int:
    """How many held-out pictures go through the model at once: no more than a device has room for in training."""
    size, _ = share_of_batch(training.global_batch_size, world_size(), training.micro_batch_size)
    return min(size, _LOOKED_AT)


def share_of_batch(global_batch_size: int, world_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Pictures per rank, and in how many passes.

    Returns:
        Size of a pass and number of passes.

    Raises:
        ConfigError: the sizes do not divide.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest or not share:
        raise ConfigError(
            f"training: a global batch of {global_batch_size} cannot be cut into {world_size} equal parts"
        )
    size = min(micro_batch_size or share, share)
    if share % size:
        raise ConfigError(f"training: micro_batch_size {size} does not divide the {share} pictures of a process")
    return size, share // size
