"""Training data of a run: pictures for a tokenizer, tokens for a generator."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from imtok.config import ConfigError
from imtok.data.loader import DataConfig, Loader
from imtok.data.sample import Dataset
from imtok.data.token_loader import TokenLoader
from imtok.data.token_shards import TokenShards
from imtok.layers.collective import rank, world_size
from imtok.training.run import Phase, TrainingConfig

_MAX_EVALUATION_BATCH = 32


@runtime_checkable
class BatchLoader(Protocol):
    """Batches by step; a batch has the methods `to(device)` and `part(start, stop)`."""

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield each step of start <= step < stop with this rank's part of its batch."""
        ...


@runtime_checkable
class DataModule(Protocol):
    """A source of training batches."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def loader(self, phase: Phase, batch_size: int, seed: int) -> BatchLoader:
        """Return the loader of a phase's batches.

        Raises:
            ConfigError: a batch cannot be divided among the ranks, or no picture has the regions that the phase needs.
        """
        ...


class ImageDataModule:
    """Crops of pictures.

    Args:
        source: dataset of pictures.
        config: settings of crops and regions.
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
        shards: token shards with the tokens.
    """

    def __init__(self, shards: TokenShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def loader(self, phase: Phase, batch_size: int, seed: int) -> BatchLoader:
        return TokenLoader(self.shards, batch_size=batch_size, seed=seed, rank=rank(), world_size=world_size())


def evaluation_batch_size(training: TrainingConfig) -> int:
    """Return the batch size of the evaluation: at most that of a training pass, which fits on the device."""
    size, _ = share_of_batch(training.global_batch_size, world_size(), training.micro_batch_size)
    return min(size, _MAX_EVALUATION_BATCH)


def share_of_batch(global_batch_size: int, world_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Divide the global batch into the passes of each rank.

    Returns:
        Pictures per pass and number of passes per rank.

    Raises:
        ConfigError: the sizes do not divide evenly.
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
