"""Transformer blocks that are shifted, scaled and gated by a vector (adaLN-Zero)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.layers.positions import sinusoidal_embedding
from imtok.layers.transformer import Attention, Context, CrossAttention

_EPSILON = 1e-6
_FREQUENCIES = 256
"""Number of sines and cosines that encode a time."""


class Block(nn.Module):
    """Self-attention and an MLP, shifted, scaled and gated by a vector; optional cross-attention between them."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, cross_attention: bool) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = nn.LayerNorm(dim, _EPSILON, elementwise_affine=False)
        self.attention = Attention(dim, num_heads)
        if cross_attention:
            self.norm_cross = nn.LayerNorm(dim)
            self.cross_attention = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, _EPSILON, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim))

    def zero_init(self) -> None:
        """Initialize the block as an identity."""
        zeroed = [self.modulation, self.cross_attention.out] if hasattr(self, "cross_attention") else [self.modulation]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], vector: Float[Tensor, "batch dim"], context: Context | None
    ) -> Float[Tensor, "batch tokens dim"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(vector))[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        if context is not None:
            x = x + self.cross_attention(self.norm_cross(x), context)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """LayerNorm, shifted and scaled by a vector, and a linear layer back to channels."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, _EPSILON, elementwise_affine=False)
        self.out = nn.Linear(dim, channels)

    def zero_init(self) -> None:
        """Initialize the layer to output zero."""
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], vector: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens channels"]:
        shift, scale = self.modulation(F.silu(vector))[:, None].chunk(2, dim=2)
        return self.out(modulate(self.norm(x), shift, scale))


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time, and two linear layers with SiLU in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, times: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        return self.mlp(sinusoidal_embedding(times, _FREQUENCIES).to(next(self.parameters()).dtype))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply the shift and scale of adaLN; zeros leave `x` unchanged."""
    return x * (1 + scale) + shift
