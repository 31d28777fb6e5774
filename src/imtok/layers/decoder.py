"""A causal Llama-style transformer (RMSNorm, SwiGLU, rotary positions), with a cache of keys and values."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.layers.model import CheckpointedSequential
from imtok.layers.positions import INIT_STD, Rotation
from imtok.layers.transformer import attend

_EPSILON = 1e-5
_HIDDEN_STEP = 256
"""SwiGLU has 8/3 dim hidden channels, rounded up to a multiple of this."""


class KVCache:
    """Keys and values of the preceding tokens, for all layers, in one preallocated block of memory.

    Args:
        decoder: the decoder that the cache is for.
        batch: number of rows.
        tokens: maximum number of tokens per row.
    """

    def __init__(self, decoder: "Decoder", batch: int, tokens: int) -> None:
        weight = decoder.norm.weight
        shape = (2, len(decoder.blocks), batch, decoder.num_heads, tokens, decoder.dim // decoder.num_heads)
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0

    def clear(self) -> None:
        """Remove all tokens."""
        self.length = 0


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions, for one layer of a decoder."""

    def __init__(self, dim: int, num_heads: int, dropout: float, layer: int) -> None:
        super().__init__()
        self.num_heads, self.layer = num_heads, layer
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: KVCache | None
    ) -> Float[Tensor, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).unbind(2)
        q, k, v = (
            apply_rotary(q, rotation).transpose(1, 2),
            apply_rotary(k, rotation).transpose(1, 2),
            v.transpose(1, 2),
        )
        if cache is not None:
            past, now = cache.length, cache.length + tokens
            cache.keys[self.layer, :, :, past:now] = k
            cache.values[self.layer, :, :, past:now] = v
            k, v = cache.keys[self.layer, :, :, :now], cache.values[self.layer, :, :, :now]
        attended = attend(q, k, v, causal=tokens > 1)
        return self.dropout(self.out(attended.transpose(1, 2).reshape(batch, tokens, dim)))


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

    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, _EPSILON)
        self.attention = Attention(dim, num_heads, dropout, layer)
        self.norm2 = nn.RMSNorm(dim, _EPSILON)
        self.feed_forward = FeedForward(dim, hidden, dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: KVCache | None
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x), rotation, cache)
        return x + self.feed_forward(self.norm2(x))


class Decoder(nn.Module):
    """Blocks and a last RMSNorm.

    Args:
        dim: number of channels.
        depth: number of blocks.
        num_heads: number of attention heads.
        dropout: dropout rate of the outputs of attention and SwiGLU, in training.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        hidden = -(-int(8 * dim / 3) // _HIDDEN_STEP) * _HIDDEN_STEP
        self.blocks = CheckpointedSequential(*(Block(dim, num_heads, hidden, dropout, layer) for layer in range(depth)))
        self.norm = nn.RMSNorm(dim, _EPSILON)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotation: Rotation, cache: KVCache | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the hidden state of every token, which depends on that token and the preceding ones.

        Args:
            x: embedded tokens; with a cache, a single one, or several if the cache is empty.
            rotation: rotation for these tokens' positions.
            cache: keys and values of the preceding tokens; those of `x` are appended.
        """
        x = self.blocks(x, rotation, cache)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


def apply_rotary(x: Float[Tensor, "batch tokens heads head_dim"], rotation: Rotation) -> Tensor:
    """Rotate the channel pairs (i, i + head_dim / 2) by each token's angles (RoFormer eq. 34)."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)  # tokens, 1, half
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
