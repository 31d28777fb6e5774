"""What every generator is: conditions in, a tokenizer's codes or latents out."""

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
"""What each picture shall show: a class or a prompt; None: anything."""


def drop_conditions(conditions: Conditions, share: float) -> list[str | None]:
    """Conditions of which a random share has become None, for classifier-free guidance."""
    without = (torch.rand(len(conditions)) < share).tolist()
    return [None if out else condition for condition, out in zip(conditions, without, strict=True)]


class Generator(Model, ABC):
    """Base class of generators.

    Attributes:
        conditioned_on: what its conditions are, "labels" or "prompts".
        config: what it was built from.
        text_conditioner: of the text encoder that its prompts go through, if they go through one.
    """

    conditioned_on: Literal["labels", "prompts"]
    config: Any
    text_conditioner: TextConditioner | None = None

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss, which is their mean."""

    @abstractmethod
    def losses(self, tokens: Num[Tensor, "batch tokens _"], conditions: Conditions) -> dict[str, Float[Tensor, ""]]:
        """What it trains with, by `loss_names`.

        Args:
            tokens: of pictures, as the tokenizer gave them.
            conditions: of the pictures.

        Raises:
            ConfigError: a condition that it does not know.
        """

    @abstractmethod
    def scores(
        self, tokens: Num[Tensor, "batch tokens _"], conditions: Conditions, seeds: Sequence[int]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """How well it knows held-out pictures: numbers by name, of each picture, always the same.

        Args:
            tokens: of the pictures.
            conditions: likewise.
            seeds: of whatever is random about it, one for each picture.
        """

    @abstractmethod
    def resolve(self, condition: str | None) -> str | None:
        """A condition as the data spell it: a class's number becomes its name.

        Raises:
            ConfigError: it cannot draw this; one line.
        """

    def init_from_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take over what the generator wants of the tokenizer that draws its tokens; by default nothing."""

    @abstractmethod
    def check_sampling(self, settings: Any) -> None:
        """Whether it can draw in this way.

        Raises:
            ConfigError: it cannot; one line.
        """

    @abstractmethod
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        settings: Any = None,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Num[Tensor, "batch tokens _"]:
        """Draw codes or latents; a picture's depend on its condition and seed, not on what else is drawn with it.

        Args:
            conditions: of the pictures.
            seeds: likewise.
            settings: of the generator's kind: `SamplingConfig` for codes, `DiffusionSamplingConfig` for latents. None: the
                kind's defaults.
            progress: hears every now and then which share of the work has been done since.

        Raises:
            ConfigError: a condition that it does not know, or settings that it cannot follow.
        """
