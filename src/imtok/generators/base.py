"""Base class of generators: conditions in, a tokenizer's codes or latents out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor

from imtok.layers.model import Model
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.text import TextConditioner

Conditions = Sequence[str | None]
"""The class or prompt of each picture; None: unconditional."""


def drop_conditions(conditions: Conditions, share: float) -> list[str | None]:
    """Replace each condition by None with probability `share`, for classifier-free guidance."""
    dropped = (torch.rand(len(conditions)) < share).tolist()
    return [None if drop else condition for condition, drop in zip(conditions, dropped, strict=True)]


class Generator(Model, ABC):
    """Base class of generators.

    Attributes:
        conditioned_on: kind of its conditions, "labels" or "prompts".
        config: the config that the generator was built from.
        text_conditioner: encodes the prompts of a generator that uses a text encoder; None for any other generator.
    """

    conditioned_on: Literal["labels", "prompts"]
    config: Any
    text_conditioner: TextConditioner | None = None

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names of the loss terms; the loss is their mean."""

    @abstractmethod
    def losses(self, tokens: Num[Tensor, "batch tokens _"], conditions: Conditions) -> dict[str, Float[Tensor, ""]]:
        """Compute the training losses, one for each of `loss_names`.

        Args:
            tokens: codes or latents of the pictures, as the tokenizer encodes them.
            conditions: conditions of the pictures.

        Raises:
            ConfigError: a condition is unknown.
        """

    @abstractmethod
    def scores(
        self, tokens: Num[Tensor, "batch tokens _"], conditions: Conditions, seeds: Sequence[int]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Return scores of held-out pictures by name, one value per picture, the same on every call.

        Args:
            tokens: codes or latents of the pictures.
            conditions: conditions of the pictures.
            seeds: one seed for each picture, for scores that need noise.
        """

    @abstractmethod
    def resolve(self, condition: str | None) -> str | None:
        """Return a condition as the dataset spells it: a class number becomes the class name.

        Raises:
            ConfigError: the generator does not support the condition; the message is one line.
        """

    def init_from_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Copy what the generator needs from the tokenizer that decodes its tokens; by default nothing."""

    @abstractmethod
    def check_sampling(self, settings: Any) -> None:
        """Check that the generator supports these sampling settings.

        Raises:
            ConfigError: it does not; the message is one line.
        """

    @abstractmethod
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        settings: Any = None,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Num[Tensor, "batch tokens _"]:
        """Sample codes or latents; a picture's depend on its condition and seed, not on the rest of the batch.

        Args:
            conditions: conditions of the pictures.
            seeds: one seed for each picture.
            settings: sampling settings: `SamplingConfig` for codes, `DiffusionSamplingConfig` for latents. None: the
                defaults.
            progress: called repeatedly with the fraction of the work done since the previous call.

        Raises:
            ConfigError: a condition is unknown, or the generator does not support the settings.
        """
