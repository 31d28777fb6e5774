"""FAR: a Llama-style transformer over factorized tokenizers' codes, one position at a time (FQGAN, section 3.3)."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.generators.autoregressive import AutoregressiveGenerator, Session
from imtok.generators.base import Conditions
from imtok.generators.classes import ClassEmbedding
from imtok.generators.heads import CodeEmbedding, HeadKind, build_head
from imtok.layers.decoder import Block, Decoder, KVCache
from imtok.layers.positions import RotaryEmbedding, grid_positions


@config
class FARConfig:
    """A class-conditional generator; the defaults are FAR-B for two codebooks at 256 px, 415M (FQGAN, appendix E)."""

    kind: Literal["far"] = "far"
    codebook_sizes: tuple[int, ...] = (16_384, 16_384)
    token_shape: tuple[int, ...] = (16, 16)
    """Rows and columns of the tokens, or their number if they do not lie on a grid."""
    num_classes: int = 1000
    classes: tuple[str, ...] = ()
    """Class names, as in the dataset's labels; empty before training."""
    dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    head: HeadKind = "factorized"
    head_depth: int = 3
    """Number of blocks in the factorized head."""
    dropout: float = 0.1
    """Dropout rate of tokens and of the outputs of attention and feed-forward layers."""
    condition_dropout: float = 0.1
    """Share of pictures whose class is dropped in training, for classifier-free guidance."""

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ConfigError(f"far: codebook_sizes = {self.codebook_sizes} must be one positive size or more")
        if not self.token_shape or min(self.token_shape) < 1:
            raise ConfigError(f"far: token_shape = {self.token_shape} must be positive")
        if min(self.num_classes, self.dim, self.depth, self.num_heads, self.head_depth) < 1:
            raise ConfigError("far: num_classes, dim, depth, num_heads and head_depth must be at least 1")
        if self.dim % self.num_heads or self.dim // self.num_heads % (2 * len(self.token_shape)):
            raise ConfigError(
                f"far: {self.num_heads} heads cannot share {self.dim} channels, in pairs along each of "
                f"{len(self.token_shape)} axes"
            )
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(f"far: {len(self.classes)} classes are named, num_classes is {self.num_classes}")
        if not (0 <= self.dropout < 1 and 0 <= self.condition_dropout < 1):
            raise ConfigError("far: dropout and condition_dropout must be in [0, 1)")


class FAR(AutoregressiveGenerator):
    """A causal transformer with one token per position, merged from its codes; a head predicts the next codes.

    The rotary embedding encodes a position's row and column, counted from 1; the class token comes first, at (0, 0).

    Deviation: dropout is applied to the outputs of the layers, but not to the attention weights.
    """

    conditioned_on = "labels"

    def __init__(self, config: FARConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes, self.tokens = config.codebook_sizes, math.prod(config.token_shape)
        dim, codebooks = config.dim, len(config.codebook_sizes)
        self.class_embedding = ClassEmbedding(config.num_classes, config.classes, dim, config.condition_dropout)
        self.embedding = CodeEmbedding(config.codebook_sizes, dim)
        self.merge = nn.Linear(codebooks * dim, dim) if codebooks > 1 else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = Decoder(dim, config.depth, config.num_heads, dropout=config.dropout)
        self.head = build_head(
            config.head, config.codebook_sizes, dim, config.head_depth, config.num_heads, config.dropout
        )
        places = torch.cat([torch.zeros(1, len(config.token_shape)), grid_positions(config.token_shape)])
        self.positions = RotaryEmbedding(places[:-1], dim // config.num_heads)  # the last position is never an input

    def forward(
        self, codes: Int[Tensor, "batch tokens codebooks"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        embedded = self.embedding(codes)
        inputs = torch.cat([self.condition(conditions), self.merge(embedded[:, :-1].flatten(2))], dim=1)
        hidden = self.decoder(self.dropout(inputs), self.positions())
        return self.head(hidden, embedded)

    def condition(self, conditions: Conditions) -> Float[Tensor, "batch 1 dim"]:
        """Embed each class as one token; in training some are dropped.

        Raises:
            ConfigError: a class is unknown.
        """
        return self.class_embedding.read(conditions)[:, None]

    def resolve(self, condition: str | None) -> str | None:
        return self.class_embedding.name(condition)

    def begin(self, conditions: Conditions) -> Session:
        return _FARSession(self, conditions)

    def stages(self) -> list[nn.Module]:
        """The transformer's blocks, and those of a factorized head."""
        return [part for part in self.modules() if isinstance(part, Block)]

    def compile_parts(self) -> None:
        """Compile the transformer (torch.compile)."""
        self.decoder.compile()


class _FARSession(Session):
    def __init__(self, model: FAR, conditions: Conditions) -> None:
        self._model = model
        self._cache = KVCache(model.decoder, len(conditions), model.tokens)
        self._append(model.condition(conditions))

    def advance(self, codes: Int[Tensor, "rows codebooks"]) -> None:
        self._append(self._model.merge(self._model.embedding(codes).flatten(1))[:, None])

    def _append(self, token: Float[Tensor, "rows 1 dim"]) -> None:
        index, model = self._cache.length, self._model
        self.hidden = model.decoder(token, model.positions(index, index + 1), self._cache)[:, 0]
