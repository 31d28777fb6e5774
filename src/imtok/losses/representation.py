"""Representation learning of FQGAN (section 3.2.2): a branch predicts a frozen network's embedding of the picture."""

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
    """A branch and the frozen network whose embedding it predicts."""

    branch: int
    """Index of the branch, from 0. FQGAN supervises all but the first."""
    network: str
    """Registry name of a frozen network that embeds pictures, or captions (`text_encoder/…`); in the latter case
    pictures without a caption do not contribute to the loss."""
    dim: int
    """Width of the embedding, and of the head that predicts it."""


@config
class RepresentationConfig:
    """Settings of the representation loss and its heads."""

    targets: tuple[RepresentationTarget, ...] = ()
    kind: Literal["info_nce", "cosine"] = "info_nce"
    """`info_nce`: contrast the picture's feature with the others of the batch; `cosine`: 1 - cosine similarity."""
    temperature: float = 1.0
    """Temperature of `info_nce`. The authors' release uses 1; the loss then depends much on the number of negatives."""
    gather: bool = False
    """Whether the pictures of other ranks are negatives too. Otherwise the negatives are those of one forward pass on
    one rank, as in the authors' release, and micro-batches reduce their number."""
    depth: int = 3
    num_heads: int = 8
    grid_size: int = 16
    """Side of the grid of a head's learned position embedding, which is resized for other grids."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or min(self.depth, self.num_heads, self.grid_size) < 1:
            raise ConfigError("representation: temperature, depth, num_heads and grid_size must be positive")
        for target in self.targets:
            if target.branch < 0 or target.dim < 1 or target.dim % self.num_heads:
                raise ConfigError(
                    f"representation: {target.network}: branch counts from 0; {self.num_heads} heads must divide dim"
                )


class RepresentationHead(nn.Module):
    """Map a branch's codes to one vector: two linear layers with ReLU, then transformer blocks with a class token."""

    def __init__(self, code_dim: int, dim: int, config: RepresentationConfig) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(code_dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(dim) * INIT_STD)
        self.positions = LearnedPositionEmbedding(config.grid_size, dim)
        self.blocks = nn.Sequential(*(Block(dim, config.num_heads) for _ in range(config.depth)))

    def forward(
        self, codes: Float[Tensor, "batch tokens code_dim"], grid_size: tuple[int, int]
    ) -> Float[Tensor, "batch dim"]:
        """Compute the class token's output.

        Args:
            codes: the quantized vectors of a branch, with their gradient.
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
    """Compute the distance of predictions from a frozen network's features; both are normalized first.

    `info_nce` is the cross-entropy, in nats, of identifying each picture's own feature among those of the batch:
    log(batch) for uninformative predictions. It has one direction, from predictions to features, as in the authors'
    release. The mean is over the known pictures of this forward pass on this rank, so passes and ranks have equal
    weights, however many known pictures they have.

    Args:
        predicted: predictions of a head.
        wanted: features of the frozen network; no gradient flows into them.
        config: kind, temperature, and whether the features of other ranks are negatives too.
        known: mask of the pictures that have a feature; the others are neither predicted nor negatives. None: all.
    """
    if known is None:
        known = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
    candidates, available = wanted.detach(), known
    if config.kind == "info_nce" and config.gather:
        candidates, available = gather_over_ranks(candidates), gather_over_ranks(known.byte()).bool()
    if not known.any():
        return predicted.sum() * 0
    with torch.autocast(predicted.device.type, enabled=False):  # features differ too little for bf16
        predicted, wanted, candidates = (
            F.normalize(upcast(x), dim=1) for x in (predicted, wanted.detach(), candidates)
        )
        if config.kind == "cosine":
            return 1 - (predicted * wanted).sum(1)[known].mean()
        first = rank() * len(wanted) if config.gather else 0
        own = torch.arange(len(wanted), device=wanted.device) + first
        logits = (predicted @ candidates.T / config.temperature).masked_fill(~available, float("-inf"))
        return F.cross_entropy(logits[known], own[known])
