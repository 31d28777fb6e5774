"""Pre-norm transformer blocks over all tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imtok.layers.model import CheckpointedSequential

_MAX_FP32_CONTEXT = 512
"""Maximum number of context tokens for which `attend` computes bf16 attention in fp32 on a CPU."""

Context = tuple[Float[Tensor, "batch context dim"], Bool[Tensor, "batch context"]]
"""Context states that tokens attend to, and their mask (False for padding)."""


def attend(
    q: Float[Tensor, "batch heads tokens channels"],
    k: Float[Tensor, "batch heads context channels"],
    v: Float[Tensor, "batch heads context channels"],
    seen: Bool[Tensor, "batch 1 1 context"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads tokens channels"]:
    """Compute attention where `seen` is True, or up to each token's own position if `causal`, or everywhere.

    On a CPU, attention over short sequences in bf16 is computed in fp32, since torch's gradient takes longer in bf16
    there (benchmarks/attention_precision.py).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[2] > _MAX_FP32_CONTEXT:
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), seen, is_causal=causal)
    return attended.to(q.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to the tokens where `mask` is True, or to all; each row needs at least one."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # batch, heads, tokens, d
        seen = None if mask is None else mask[:, None, None]
        return self.out(attend(q, k, v, seen).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context; the output is zero for a picture without context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"], context: Context) -> Float[Tensor, "batch tokens dim"]:
        states, mask = context
        has_context = mask.any(1)
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # batch, heads, tokens, d
        k, v = self.kv(states).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = (mask | ~has_context[:, None])[:, None, None]  # a softmax over nothing is NaN
        attended = attend(q, k, v, seen).transpose(1, 2).flatten(2)
        return torch.where(has_context[:, None, None], self.out(attended), 0.0)


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, two linear layers with GELU in between; each half is added to its input.

    With `cross_attention`, another LayerNorm and attention to a context follow the self-attention.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, cross_attention: bool = False) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        if cross_attention:
            self.norm_cross = nn.LayerNorm(dim)
            self.cross_attention = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        context: Context | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Transform the tokens.

        Args:
            x: the tokens.
            mask: True for valid tokens; the others do not affect them. None: all are valid.
            context: context of the cross-attention, if the block has any; None skips that layer.
        """
        x = x + self.attention(self.norm1(x), mask)
        if context is not None:
            x = x + self.cross_attention(self.norm_cross(x), context)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Blocks and a last LayerNorm."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0, cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.blocks = CheckpointedSequential(*(Block(dim, num_heads, mlp_ratio, cross_attention) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        context: Context | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply all blocks and the last LayerNorm; for the arguments, see `Block.forward`."""
        return self.norm(self.blocks(x, mask, context))
