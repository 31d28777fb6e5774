"""A causal transformer of Llama's kind (RMSNorm, SwiGLU, rotary positions), with a cache of keys and values."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_START_STD = 0.02
_EPSILON = 1e-5
_BASE = 10_000.0
_HIDDEN_STEP = 256
"""SwiGLU has 8/3 dim hidden channels, rounded up to a multiple of this."""

Rotation = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]
"""Cosines and sines of the angles by which pairs of channels are turned, tokens x half a head's channels."""


class Cache:
    """Keys and values of the tokens so far, for all layers, in one block of memory that is never moved.

    Args:
        decoder: whose tokens.
        batch: rows.
        tokens: at most so many.
    """

    def __init__(self, decoder: "Decoder", batch: int, tokens: int) -> None:
        weight = decoder.norm.weight
        shape = (2, len(decoder.blocks), batch, decoder.num_heads, tokens, decoder.dim // decoder.num_heads)
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0

    def clear(self) -> None:
        """Forget all tokens."""
        self.length = 0


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: Cache | None, layer: int
    ) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).unbind(2)
        q, k, v = rotate(q, rotation).transpose(1, 2), rotate(k, rotation).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            past, now = cache.length, cache.length + tokens
            cache.keys[layer, :, :, past:now] = k
            cache.values[layer, :, :, past:now] = v
            k, v = cache.keys[layer, :, :, :now], cache.values[layer, :, :, :now]
        found = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)
        return self.dropout(self.out(found.transpose(1, 2).reshape(batch, tokens, dim)))


class FeedForward(nn.Module):
    """SwiGLU: one half of the hidden channels gates the other."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.dropout(self.down(F.silu(gate) * up))


class Block(nn.Module):
    """RMSNorm, attention, RMSNorm, SwiGLU; each half is added to its input."""

    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, _EPSILON)
        self.attention = Attention(dim, num_heads, dropout)
        self.norm2 = nn.RMSNorm(dim, _EPSILON)
        self.feed_forward = FeedForward(dim, hidden, dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: Cache | None, layer: int
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x), rotation, cache, layer)
        return x + self.feed_forward(self.norm2(x))


class Decoder(nn.Module):
    """Blocks and a last RMSNorm.

    Args:
        dim: channels.
        depth: blocks.
        num_heads: of attention.
        dropout: of what each half of a block adds, in training.
    """

    checkpointing = False

    def __init__(self, dim: int, depth: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        hidden = -(-int(8 * dim / 3) // _HIDDEN_STEP) * _HIDDEN_STEP
        self.blocks = nn.ModuleList(Block(dim, num_heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, _EPSILON)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_START_STD)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: Cache | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Every token after it has seen those before it.

        Args:
            x: the tokens; with a cache, the one that comes next, or the first few.
            rotation: of these tokens' positions.
            cache: of the tokens before; these are added.
        """
        recompute = self.checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, rotation, cache, layer, use_reentrant=False)
            else:
                x = block(x, rotation, cache, layer)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


def rotate(x: Float[Tensor, "batch tokens heads head_dim"], rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of channels by each token's angles (RoFormer eq. 34)."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)  # tokens, 1, half
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RotaryPositions(nn.Module):
    """The angles by which the channels of a head are turned at known positions; each axis has an equal share of them.

    Raises:
        ValueError: the channels cannot be shared out in pairs.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, positions: Float[Tensor, "tokens axes"], head_dim: int) -> None:
        super().__init__()
        axes = positions.shape[1]
        if head_dim % (2 * axes):
            raise ValueError(f"a head of {head_dim} channels cannot be turned along {axes} axes")
        pairs = head_dim // 2 // axes
        speeds = _BASE ** -(torch.arange(pairs, device=positions.device) / pairs)
        angles = (positions[:, :, None] * speeds).flatten(1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int = 0, stop: int | None = None) -> Rotation:
        """Of the tokens start <= i < stop; None: of all from `start` on."""
        return self.cos[start:stop], self.sin[start:stop]


def grid_positions(grid_size: Sequence[int]) -> Float[Tensor, "tokens axes"]:
    """Row and column of every place of a grid, row by row, counted from 1; 0 is for what comes before."""
    axes = [torch.arange(1.0, side + 1) for side in grid_size]
    return torch.cartesian_prod(*axes).view(-1, len(axes))
