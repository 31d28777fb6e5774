"""Preview pictures that are written during training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from imtok.data.pictures import encode, to_uint8
from imtok.layers.collective import rank

PREVIEW_PICTURES = 8


def write_preview(rows: Sequence[Float[Tensor, "pictures 3 height width"]], folder: Path, step: int) -> Path:
    """Write rows of pictures, one below the other, as FOLDER/step-00001234.png; only the first rank writes.

    Args:
        rows: rows of pictures in [-1, 1], all with the same number of pictures and the same size.
        folder: output folder; created if missing.
        step: step of the run.
    """
    file = folder / f"step-{step:08d}.png"
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        sheet = torch.cat([torch.cat(list(pictures), dim=2) for pictures in rows], dim=1)
        file.write_bytes(encode(to_uint8(sheet)))
    return file
