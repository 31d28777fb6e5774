"""Learned, rotary and fixed (sine-cosine) position embeddings on grids of any number of axes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

INIT_STD = 0.02
"""Standard deviation of randomly initialized parameters."""
_BASE = 10_000.0

Rotation = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]
"""Cosines and sines of the angles by which pairs of channels are rotated, each tokens x half a head's channels."""


class LearnedPositionEmbedding(nn.Module):
    """A learned vector for each position of a square grid, resized (bicubic) to other grids.

    Args:
        side: number of rows and of columns of the square grid.
        dim: dimension of the vectors.
        start: initial vectors; None: small random values.
    """

    def __init__(self, side: int, dim: int, start: Float[Tensor, "places dim"] | None = None) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.randn(side * side, dim) * INIT_STD if start is None else start)

    def forward(self, grid_size: tuple[int, int]) -> Float[Tensor, "tokens dim"]:
        """Return the embeddings of a grid's positions, row by row.

        Args:
            grid_size: rows and columns of the grid.
        """
        if grid_size == (self.side, self.side):
            return self.table
        square = self.table.T.unflatten(1, (self.side, self.side))[None]  # 1, dim, side, side
        return F.interpolate(square, grid_size, mode="bicubic", align_corners=False)[0].flatten(1).T


class RotaryEmbedding(nn.Module):
    """Rotation angles of a head's channels at given positions; the channels are divided equally among the axes.

    Raises:
        ValueError: the channels cannot be divided equally among the axes in pairs.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, positions: Float[Tensor, "tokens axes"], head_dim: int) -> None:
        super().__init__()
        axes = positions.shape[1]
        if head_dim % (2 * axes):
            raise ValueError(f"a head of {head_dim} channels cannot be turned along {axes} axes")
        pairs = head_dim // 2 // axes
        frequencies = _BASE ** -(torch.arange(pairs, device=positions.device) / pairs)
        angles = (positions[:, :, None] * frequencies).flatten(1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int = 0, stop: int | None = None) -> Rotation:
        """Return the rotation of tokens start <= i < stop; with `stop` None, of all from `start` on."""
        return self.cos[start:stop], self.sin[start:stop]


def grid_positions(grid_size: Sequence[int]) -> Float[Tensor, "tokens axes"]:
    """Return row and column of every position of a grid, row by row, counted from 1; 0 is for preceding tokens."""
    axes = [torch.arange(1.0, side + 1) for side in grid_size]
    return torch.cartesian_prod(*axes).view(-1, len(axes))


def sinusoidal_embedding(places: Float[Tensor, " places"], channels: int) -> Float[Tensor, "places channels"]:
    """Return cosines and sines of numbers at frequencies from 1 down to almost 1 / 10,000."""
    half = channels // 2
    frequencies = _BASE ** -(torch.arange(half, device=places.device) / half)
    angles = places[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(places.dtype)


def sincos_positions(shape: Sequence[int], dim: int) -> Float[Tensor, "tokens dim"]:
    """Return fixed position embeddings of a grid; the channels are divided equally among the axes."""
    places = grid_positions(shape)  # tokens, axes
    return torch.cat([sinusoidal_embedding(axis, dim // len(shape)) for axis in places.unbind(1)], dim=1)
