import pytest
import torch

from imtok.layers.positions import LearnedPositionEmbedding


@pytest.mark.parametrize("grid", [(8, 4), (4, 10), (2, 3)])
def test_learned_positions_are_interpolated_along_each_axis(grid: tuple[int, int]) -> None:
    """A table of row and column coordinates, resized to another grid, holds that grid's positions in the old grid."""
    side = 6
    positions = LearnedPositionEmbedding(side, 2)
    rows, columns = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    positions.table.data = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    assert torch.equal(positions((side, side)), positions.table)
    found = positions(grid).unflatten(0, grid)
    for axis, count in enumerate(grid):
        expected = (torch.arange(count) + 0.5) * side / count - 0.5
        along, across = found[..., axis].movedim(axis, 0), found[..., 1 - axis].movedim(axis, 0)
        # the tolerance is the error of bicubic interpolation at the edges
        assert torch.allclose(along, expected[:, None].expand_as(along), atol=0.15)
        assert (along.diff(dim=0) > 0).all()
        assert torch.allclose(across, across[:1].expand_as(across), atol=1e-5)
