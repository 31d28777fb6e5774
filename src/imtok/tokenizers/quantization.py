"""What every quantizer is: continuous vectors to codebook entries, with the gradient passed straight through."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_SEARCH_ELEMENTS = 1 << 26
"""Scores held at once in the nearest-code search (256 MiB in fp32)."""


@dataclass(frozen=True)
class Quantized:
    """Result of a quantizer: without a codebook there are no codes; `losses` are unweighted, empty outside training."""

    latents: Float[Tensor, "batch tokens dim"]
    codes: Int[Tensor, "batch tokens codebooks"] | None
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Base class of all quantizers.

    Attributes:
        codebook_sizes: entries of each codebook; empty for a continuous bottleneck.
        frozen: when True the codebook stays as it is (decoder-only training).
        bypass: when True vectors pass unquantized in training, and the codebook follows them as far as its kind can: a
            model's first steps.
        skipped_losses: names of losses that nobody weighs, so that they need not be computed.
        loss_names: what it may owe in training.
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
        """The vectors that codes stand for.

        Raises:
            TypeError: there is no codebook.
        """

    def start_phase(self, *, frozen: bool, bypass: bool, skipped_losses: frozenset[str]) -> None:
        """How it trains from here on; see the attributes."""
        self.frozen, self.bypass, self.skipped_losses = frozen, bypass, skipped_losses

    def split(self, vectors: Float[Tensor, "batch tokens dim"]) -> tuple[Float[Tensor, "batch tokens sub_dim"], ...]:
        """Each codebook's channels; all of them for a single codebook."""
        return (vectors,)

    def update(self) -> dict[str, float]:
        """Apply what the forward passes of one optimizer step gathered, on all ranks alike.

        Returns:
            Numbers worth logging: `codebook_used` is the share of codes that the step used, of those that it could
            have used (no more than it had vectors).
        """
        return {}


def nearest_codes(
    vectors: Float[Tensor, "vectors dim"], codebook: Float[Tensor, "codes dim"], normalized: bool
) -> Int[Tensor, " vectors"]:
    """Index of the nearest code (InsightTok eq. 12): one matrix product, in blocks of bounded memory.

    Args:
        vectors: fp32.
        codebook: fp32.
        normalized: all vectors have length 1, so that the nearest code is the one with the largest product.
    """
    offset = None if normalized else codebook.square().sum(1) / 2
    rows = max(1, _SEARCH_ELEMENTS // len(codebook))
    found = []
    for block in vectors.split(rows):
        score = block @ codebook.T
        found.append((score if offset is None else score - offset).argmax(1))
    return torch.cat(found)
