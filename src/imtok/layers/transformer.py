"""Pre-norm transformer blocks, and learned positions that stretch to other grids."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_START_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # batch, heads, tokens, d
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, two linear layers with GELU between; each half is added to its input."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GridPositions(nn.Module):
    """A learned vector for each place of a square grid, resized (bicubic) to other grids."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.randn(side * side, dim) * _START_STD)

    def forward(self, grid_size: tuple[int, int]) -> Float[Tensor, "tokens dim"]:
        """The positions of a grid, row by row.

        Args:
            grid_size: rows and columns.
        """
        if grid_size == (self.side, self.side):
            return self.table
        square = self.table.T.unflatten(1, (self.side, self.side))[None]  # 1, dim, side, side
        return F.interpolate(square, grid_size, mode="bicubic", align_corners=False)[0].flatten(1).T
