"""Where tokens stand: learned, rotary and fixed positions on grids of any number of axes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

INIT_STD = 0.02
"""Standard deviation of what is learned and begins at random."""
_BASE = 10_000.0

Rotation = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]
"""Cosines and sines of the angles by which pairs of channels are turned, tokens x half a head's channels."""


class LearnedPositionEmbedding(nn.Module):
    """A learned vector for each place of a square grid, resized (bicubic) to other grids.

    Args:
        side: of the grid.
        dim: of the vectors.
        start: what they begin with; None: small random numbers.
    """

    def __init__(self, side: int, dim: int, start: Float[Tensor, "places dim"] | None = None) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.randn(side * side, dim) * INIT_STD if start is None else start)

    def forward(self, grid_size: tuple[int, int]) -> Float[Tensor, "tokens dim"]:
        """The positions of a grid, row by row.

        Args:
            grid_size: rows and columns.
        """
        if grid_size == (self.side, self.side):
            return self.table
        square = self.table.T.unflatten(1, (self.side, self.side))[None]  # 1, dim, side, side
        return F.interpolate(square, grid_size, mode="bicubic", align_corners=False)[0].flatten(1).T


class RotaryEmbedding(nn.Module):
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


def sinusoidal_embedding(places: Float[Tensor, " places"], channels: int) -> Float[Tensor, "places channels"]:
    """Cosines and sines of numbers at speeds from 1 down to almost 1 / 10,000."""
    half = channels // 2
    speeds = _BASE ** -(torch.arange(half, device=places.device) / half)
    angles = places[:, None].float() * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(places.dtype)


def sincos_positions(shape: Sequence[int], dim: int) -> Float[Tensor, "tokens dim"]:
    """Fixed positions, of which each axis has an equal share of the channels."""
    places = grid_positions(shape)  # tokens, axes
    return torch.cat([sinusoidal_embedding(axis, dim // len(shape)) for axis in places.unbind(1)], dim=1)
