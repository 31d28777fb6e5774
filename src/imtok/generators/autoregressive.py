"""Base class of autoregressive generators, which predict and sample codes position by position."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imtok.config import ConfigError
from imtok.generators.base import Conditions, Generator
from imtok.generators.heads import CodeEmbedding, Head
from imtok.generators.sampling import SamplingConfig, classifier_free_guidance, sample_code, uniform_noise


class Session(ABC):
    """Incremental decoding of a batch of code sequences, one per row.

    Attributes:
        hidden: hidden state of each row, from which the head predicts the codes of the next position.
    """

    hidden: Float[Tensor, "rows dim"]

    @abstractmethod
    def advance(self, codes: Int[Tensor, "rows codebooks"]) -> None:
        """Append the codes of the current position, and compute the hidden state of the next one."""


class AutoregressiveGenerator(Generator):
    """Base class of generators of codes.

    Attributes:
        codebook_sizes: number of codes in each codebook.
        tokens: number of positions in a picture.
        embedding: code embeddings that the head uses.
        head: predicts the codes of a position from the hidden state.
    """

    codebook_sizes: tuple[int, ...]
    tokens: int
    embedding: CodeEmbedding
    head: Head

    @abstractmethod
    def forward(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """Return the logits of every codebook at every position, given the preceding codes and the condition.

        Raises:
            ConfigError: a condition is unknown.
        """

    @abstractmethod
    def begin(self, conditions: Conditions) -> Session:
        """Start decoding: a session with one row for each condition, before its first code.

        Raises:
            ConfigError: a condition is unknown.
        """

    @property
    def loss_names(self) -> tuple[str, ...]:
        """A cross-entropy for each codebook; training minimizes their mean (FQGAN, section 3.3)."""
        return tuple(f"cross_entropy_{index}" for index in range(len(self.codebook_sizes)))

    def losses(
        self, tokens: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> dict[str, Float[Tensor, ""]]:
        each = enumerate(zip(self.loss_names, self(tokens, conditions), strict=True))
        return {
            name: F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, :, index].flatten())
            for index, (name, logits) in each
        }

    def scores(
        self, tokens: Int[Tensor, "batch tokens codebooks"], conditions: Conditions, seeds: Sequence[int]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Return mean negative log-likelihoods in nats: of all codes of a position, and of each codebook's code."""
        each = -self.log_likelihood(tokens, conditions).cpu().double().mean(1)  # batch, codebooks
        return {"nll": each.sum(1)} | {f"nll_{index}": nll for index, nll in enumerate(each.unbind(1))}

    def check_sampling(self, settings: SamplingConfig) -> None:
        if len(settings.guidance_scale) not in (1, len(self.codebook_sizes)):
            raise ConfigError(
                f"{len(settings.guidance_scale)} guidance scales for {len(self.codebook_sizes)} codebooks"
            )

    def shared_logits(self, hidden: Float[Tensor, "*places dim"], codebook: int) -> Float[Tensor, "*places _"] | float:
        """Return logits to add to the head's, in `forward` and in `sample`; 0 unless overridden."""
        return 0.0

    @torch.no_grad()
    def log_likelihood(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> Float[Tensor, "batch tokens codebooks"]:
        """Return the natural logarithm of the probability of every code, given the preceding ones."""
        logits = self(codes, conditions)
        each = [part.float().log_softmax(2).gather(2, codes[:, :, [i]])[:, :, 0] for i, part in enumerate(logits)]
        return torch.stack(each, dim=2)

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        settings: SamplingConfig | None = None,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Int[Tensor, "batch tokens codebooks"]:
        settings = settings or SamplingConfig()
        self.check_sampling(settings)
        noise = uniform_noise(list(seeds), self.tokens, len(self.codebook_sizes))
        guided = settings.uses_guidance
        session = self.begin([*conditions, *([None] * len(conditions) if guided else [])])
        cache = self.head.new_cache(len(session.hidden))
        codes = torch.empty(noise.shape, dtype=torch.long, device=self.device)
        for token in range(self.tokens):

            def pick(logits: Tensor, codebook: int, token: int = token) -> Tensor:
                logits = logits + self.shared_logits(session.hidden, codebook)
                if guided:
                    logits = classifier_free_guidance(logits, settings.scale(codebook, token, self.tokens))
                picked = sample_code(logits.cpu(), noise[:, token, codebook], settings).to(self.device)
                return torch.cat([picked, picked]) if guided else picked

            sampled = self.head.draw(session.hidden, self.embedding, pick, cache)
            codes[:, token] = sampled[: len(codes)]
            if token + 1 < self.tokens:
                session.advance(sampled)
            progress(1 / self.tokens)
        return codes
