"""Heads that predict the k codes of a position from a hidden state: one after the other or all at once (FAR)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imtok.layers.decoder import Decoder, KVCache
from imtok.layers.positions import RotaryEmbedding

HeadKind = Literal["factorized", "linear", "mlp"]

Pick = Callable[[Float[Tensor, "rows codes"], int], Int[Tensor, " rows"]]
"""Selects a code for each row, given the logits of a codebook and its index."""


class CodeEmbedding(nn.Module):
    """A learned vector for each code of each codebook."""

    def __init__(self, codebook_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in codebook_sizes)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # pyright: ignore[reportArgumentType]

    def forward(self, codes: Int[Tensor, "*places codebooks"]) -> Float[Tensor, "*places codebooks dim"]:
        """Embed codes of all codebooks, or of the first few only."""
        parts = zip(self.tables, codes.unbind(-1), strict=False)
        return torch.stack([table(code) for table, code in parts], dim=-2)


class Head(nn.Module, ABC):
    """Predicts the logits of every codebook at a position."""

    @abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        embedded: Float[Tensor, "batch tokens codebooks dim"] | None,
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """Return the logits of all positions at once, as in training.

        Args:
            hidden: hidden state of each position, computed from the preceding positions.
            embedded: embeddings of the codes at each position; a factorized head predicts a codebook's code given those
                of the preceding codebooks. Other heads ignore them; None is then allowed.
        """

    def new_cache(self, rows: int) -> KVCache | None:
        """Return an empty cache for `draw` with `rows` rows; None if the head uses no cache."""
        return None

    @abstractmethod
    def draw(
        self, hidden: Float[Tensor, "rows dim"], embedding: CodeEmbedding, pick: Pick, cache: KVCache | None
    ) -> Int[Tensor, "rows codebooks"]:
        """Sample the codes of one position, codebook by codebook."""


class ParallelHead(Head):
    """k independent classifiers (FQGAN, Table 4): one linear layer each, or two with GELU in between."""

    def __init__(self, codebook_sizes: Sequence[int], dim: int, hidden: bool) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), _classifier(dim, size)) if hidden else _classifier(dim, size)
            for size in codebook_sizes
        )

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        embedded: Float[Tensor, "batch tokens codebooks dim"] | None,
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        return tuple(classify(hidden) for classify in self.classifiers)

    def draw(
        self, hidden: Float[Tensor, "rows dim"], embedding: CodeEmbedding, pick: Pick, cache: KVCache | None
    ) -> Int[Tensor, "rows codebooks"]:
        codes = [pick(classify(hidden), index) for index, classify in enumerate(self.classifiers)]
        return torch.stack(codes, dim=1)


class FactorizedHead(Head):
    """A small causal transformer over [hidden state, code 1, …, code k - 1] at each position (FQGAN, section 3.3)."""

    def __init__(
        self, codebook_sizes: Sequence[int], dim: int, depth: int, num_heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.decoder = Decoder(dim, depth, num_heads, dropout=dropout)
        self.classifiers = nn.ModuleList(_classifier(dim, size) for size in codebook_sizes)
        places = torch.arange(float(len(codebook_sizes)))[:, None]
        self.positions = RotaryEmbedding(places, dim // num_heads)

    def new_cache(self, rows: int) -> KVCache:
        return KVCache(self.decoder, rows, len(self.classifiers))

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        embedded: Float[Tensor, "batch tokens codebooks dim"] | None,
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        assert embedded is not None
        inputs = torch.cat([hidden[:, :, None], embedded[:, :, :-1]], dim=2).flatten(0, 1)
        states = self.decoder(inputs, self.positions()).unflatten(0, hidden.shape[:2])
        return tuple(classify(states[:, :, index]) for index, classify in enumerate(self.classifiers))

    def draw(
        self, hidden: Float[Tensor, "rows dim"], embedding: CodeEmbedding, pick: Pick, cache: KVCache | None
    ) -> Int[Tensor, "rows codebooks"]:
        assert cache is not None
        cache.clear()
        codes: list[Tensor] = []
        token = hidden
        for index, classify in enumerate(self.classifiers):
            state = self.decoder(token[:, None], self.positions(index, index + 1), cache)[:, 0]
            codes.append(pick(classify(state), index))
            token = embedding.tables[index](codes[-1])
        return torch.stack(codes, dim=1)


def build_head(
    kind: HeadKind, codebook_sizes: Sequence[int], dim: int, depth: int, num_heads: int, dropout: float = 0.0
) -> Head:
    """Build an untrained head; `depth`, `num_heads` and `dropout` only apply to a factorized one."""
    if kind == "factorized":
        return FactorizedHead(codebook_sizes, dim, depth, num_heads, dropout)
    return ParallelHead(codebook_sizes, dim, hidden=kind == "mlp")


def _classifier(dim: int, size: int) -> nn.Linear:
    """Return a linear classifier with zero weights: all codes are equally likely at first."""
    layer = nn.Linear(dim, size, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
