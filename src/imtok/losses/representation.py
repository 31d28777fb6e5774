"""Representation learning of FQGAN (section 3.2.2): a branch of codes predicts what a frozen network sees or reads."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.layers.collective import gather_over_ranks, rank
from imtok.layers.positions import INIT_STD, LearnedPositionEmbedding
from imtok.layers.precision import upcast
from imtok.layers.transformer import Block


@config
class RepresentationTarget:
    """Which branch predicts which network."""

    branch: int
    """From 0. FQGAN supervises all but the first."""
    network: str
    """A frozen network in the registry that embeds pictures, or captions (`text_encoder/…`); pictures without a caption
    then teach nothing."""
    dim: int
    """Width of that embedding, and of the head that predicts it."""


@config
class RepresentationConfig:
    """How branches learn from frozen networks."""

    targets: tuple[RepresentationTarget, ...] = ()
    kind: Literal["info_nce", "cosine"] = "info_nce"
    """`info_nce`: tell the picture's own feature from the batch's others; `cosine`: 1 - cosine with it."""
    temperature: float = 1.0
    """Of `info_nce`. The authors' release uses 1; with it the loss depends strongly on the number of negatives."""
    gather: bool = False
    """Whether the other ranks' pictures are negatives too. Without, they are those of one pass on one rank, as in the
    authors' release; micro-batches make them fewer."""
    depth: int = 3
    num_heads: int = 8
    grid_size: int = 16
    """Side of the grid whose positions a head learns; other grids get them resized."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or min(self.depth, self.num_heads, self.grid_size) < 1:
            raise ConfigError("representation: temperature, depth, num_heads and grid_size must be positive")
        for target in self.targets:
            if target.branch < 0 or target.dim < 1 or target.dim % self.num_heads:
                raise ConfigError(
                    f"representation: {target.network}: branch counts from 0; {self.num_heads} heads must divide dim"
                )


class RepresentationHead(nn.Module):
    """A branch's codes of a picture to one vector: two linear layers with ReLU, a class token, transformer blocks."""

    def __init__(self, code_dim: int, dim: int, config: RepresentationConfig) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(code_dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(dim) * INIT_STD)
        self.positions = LearnedPositionEmbedding(config.grid_size, dim)
        self.blocks = nn.Sequential(*(Block(dim, config.num_heads) for _ in range(config.depth)))

    def forward(
        self, codes: Float[Tensor, "batch tokens code_dim"], grid_size: tuple[int, int]
    ) -> Float[Tensor, "batch dim"]:
        """The class token's answer.

        Args:
            codes: a branch's quantized vectors, with their gradient.
            grid_size: rows and columns of the tokens.
        """
        tokens = self.lift(codes) + self.positions(grid_size)
        first = self.class_token.expand(len(codes), 1, -1)
        return self.blocks(torch.cat([first, tokens], dim=1))[:, 0]


def representation_loss(
    predicted: Float[Tensor, "batch dim"],
    wanted: Float[Tensor, "batch dim"],
    config: RepresentationConfig,
    known: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """How far predictions are from a frozen network's features; both are normalized first.

    `info_nce`: cross-entropy of finding each picture's own feature among those of the batch, in nats: log(batch) when
    the predictions know nothing. One direction, from predictions to features, as in the authors' release. The mean is
    over the pictures of this pass on this rank, so passes and ranks count alike however many pictures they know.

    Args:
        predicted: by a head.
        wanted: by the network; no gradient flows into them.
        config: kind, temperature, and whether the other ranks' features are negatives too.
        known: pictures of which there is a feature; the others are neither asked for nor negatives. None: all.
    """
    if known is None:
        known = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
    candidates, there = wanted.detach(), known
    if config.kind == "info_nce" and config.gather:
        candidates, there = gather_over_ranks(candidates), gather_over_ranks(known.byte()).bool()
    if not known.any():
        return predicted.sum() * 0
    with torch.autocast(predicted.device.type, enabled=False):  # features lie close together
        predicted, wanted, candidates = (
            F.normalize(upcast(x), dim=1) for x in (predicted, wanted.detach(), candidates)
        )
        if config.kind == "cosine":
            return 1 - (predicted * wanted).sum(1)[known].mean()
        first = rank() * len(wanted) if config.gather else 0
        own = torch.arange(len(wanted), device=wanted.device) + first
        logits = (predicted @ candidates.T / config.temperature).masked_fill(~there, float("-inf"))
        return F.cross_entropy(logits[known], own[known])
