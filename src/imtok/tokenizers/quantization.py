"""Base class of quantizers, which map vectors to codebook entries with a straight-through gradient."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_SEARCH_ELEMENTS = 1 << 26
"""Maximum number of scores in memory during the nearest-code search (256 MiB in fp32)."""


@dataclass(frozen=True)
class Quantized:
    """Output of a quantizer: `codes` is None without a codebook; `losses` are unweighted, and empty in eval mode."""

    latents: Float[Tensor, "batch tokens dim"]
    codes: Int[Tensor, "batch tokens codebooks"] | None
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Base class of all quantizers.

    Attributes:
        codebook_sizes: number of entries of each codebook; empty for a continuous bottleneck.
        frozen: if True, the codebook is not updated (decoder-only training).
        bypass: if True, vectors pass unquantized in training, while the codebook follows them if its kind supports it;
            for the first steps of a model.
        skipped_losses: names of losses of weight 0, which need not be computed.
        loss_names: names of the losses that it may return in training.
    """

    codebook_sizes: tuple[int, ...]
    loss_names: frozenset[str] = frozenset({"commitment"})
    frozen = False
    bypass = False
    skipped_losses: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantized: ...

    @abstractmethod
    def lookup(self, codes: Int[Tensor, "batch tokens codebooks"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the vectors of the given codes.

        Raises:
            TypeError: there is no codebook.
        """

    def start_phase(self, *, frozen: bool, bypass: bool, skipped_losses: frozenset[str]) -> None:
        """Set how the quantizer is trained from now on; see the attributes."""
        self.frozen, self.bypass, self.skipped_losses = frozen, bypass, skipped_losses

    def split(self, vectors: Float[Tensor, "batch tokens dim"]) -> tuple[Float[Tensor, "batch tokens sub_dim"], ...]:
        """Split vectors into the channels of each codebook; a single part for a single codebook."""
        return (vectors,)

    def update(self) -> dict[str, float]:
        """Apply the statistics that the forward passes of one optimizer step collected, identically on all ranks.

        Returns:
            Numbers to log: `codebook_used` is the number of codes used in the step, as a share of those that could have
            been used (at most as many as there were vectors).
        """
        return {}


def nearest_codes(
    vectors: Float[Tensor, "vectors dim"], codebook: Float[Tensor, "codes dim"], normalized: bool
) -> Int[Tensor, " vectors"]:
    """Return the index of each vector's nearest code (InsightTok eq. 12), by matrix products of bounded memory.

    Args:
        vectors: vectors in fp32.
        codebook: codes in fp32.
        normalized: whether vectors and codes have length 1, so that the nearest code has the largest dot product.
    """
    offset = None if normalized else codebook.square().sum(1) / 2
    rows = max(1, _SEARCH_ELEMENTS // len(codebook))
    nearest = []
    for block in vectors.split(rows):
        score = block @ codebook.T
        nearest.append((score if offset is None else score - offset).argmax(1))
    return torch.cat(nearest)
