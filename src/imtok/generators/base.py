"""What every autoregressive generator is: it tells, place by place, what it expects of the codes, and draws them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imtok.generators.heads import CodeEmbedding, Head
from imtok.generators.sampling import SamplingConfig, draw_noise, guide, pick_code
from imtok.layers.model import Model
from imtok.tokenizers.base import Tokenizer

Conditions = Sequence[str | None]
"""What each picture shall show: a class or a prompt; None: anything."""


class Session(ABC):
    """Pictures in the making, one row each: what the generator knows of the place that comes next.

    Attributes:
        hidden: of each row.
    """

    hidden: Float[Tensor, "rows dim"]

    @abstractmethod
    def advance(self, codes: Int[Tensor, "rows codebooks"]) -> None:
        """Take the codes of this place and go on to the next."""


class Generator(Model, ABC):
    """Base class of generators of codes.

    Attributes:
        listens_to: what its conditions are, "labels" or "prompts".
        config: what it was built from.
        codebook_sizes: of the codes.
        tokens: places of a picture.
        embedding: vectors for codes, for the head.
        head: from what is known of a place to the codes there.
    """

    listens_to: Literal["labels", "prompts"]
    config: Any
    codebook_sizes: tuple[int, ...]
    tokens: int
    embedding: CodeEmbedding
    head: Head

    @abstractmethod
    def forward(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """Logits of every codebook at every place, given the codes before it and the condition.

        Raises:
            ConfigError: a condition that it does not know.
        """

    @abstractmethod
    def check(self, condition: str | None) -> None:
        """Whether it can draw this.

        Raises:
            ConfigError: it cannot; one line.
        """

    @abstractmethod
    def begin(self, conditions: Conditions) -> Session:
        """A row for each condition, before its first code.

        Raises:
            ConfigError: a condition that it does not know.
        """

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Take over what the generator wants of the tokenizer that draws its codes; by default nothing."""

    @torch.no_grad()
    def log_likelihood(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> Float[Tensor, "batch tokens codebooks"]:
        """Natural logarithm of the probability of every code, given those before it."""
        logits = self(codes, conditions)
        each = [one.float().log_softmax(2).gather(2, codes[:, :, [i]])[:, :, 0] for i, one in enumerate(logits)]
        return torch.stack(each, dim=2)

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        settings: SamplingConfig | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> Int[Tensor, "batch tokens codebooks"]:
        """Draw codes; a picture's depend on its condition and seed, not on what else is drawn with it.

        Args:
            conditions: of the pictures.
            seeds: likewise.
            settings: None: without guidance, from the model's own distribution.
            progress: called after every place.

        Raises:
            ConfigError: a condition that it does not know, or guidance for other codebooks.
        """
        settings = settings or SamplingConfig()
        device = next(self.parameters()).device
        noise = draw_noise(list(seeds), self.tokens, len(self.codebook_sizes))
        guided = settings.guided
        session = self.begin([*conditions, *([None] * len(conditions) if guided else [])])
        codes = torch.empty(noise.shape, dtype=torch.long, device=device)
        for token in range(self.tokens):

            def pick(logits: Tensor, codebook: int, token: int = token) -> Tensor:
                if guided:
                    logits = guide(logits, settings.scale(codebook, token, self.tokens))
                found = pick_code(logits.cpu(), noise[:, token, codebook], settings).to(device)
                return torch.cat([found, found]) if guided else found

            drawn = self.head.draw(session.hidden, self.embedding, pick)
            codes[:, token] = drawn[: len(codes)]
            if token + 1 < self.tokens:
                session.advance(drawn)
            progress()
        return codes
