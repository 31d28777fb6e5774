"""Are faces still the same person? A judge that had no part in training compares them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from imtok.data.pictures import from_uint8
from imtok.data.sample import Face
from imtok.layers.crops import Regions, align_faces

Picture = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class FaceJudge(Protocol):
    """Embeds aligned faces."""

    input_size: tuple[int, int] | None
    template: Tensor

    def embed(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings of faces in [-1, 1] that lie on `template`."""
        ...


@torch.no_grad()
def face_similarity(
    judge: FaceJudge, original: Picture, reconstruction: Picture, faces: Sequence[Face]
) -> Float[Tensor, " faces"]:
    """Cosine between the embeddings of each face in the original and in the reconstruction.

    The landmarks are those of the original for both, as in TokBench: nothing is detected on the reconstruction.

    Args:
        judge: of the role `face_judge`.
        original: as it was.
        reconstruction: of the same size.
        faces: with landmarks.

    Raises:
        ValueError: a face without landmarks.
    """
    if not faces:
        return torch.zeros(0)
    assert judge.input_size is not None, "a face judge has an input size"
    regions = Regions(
        boxes=torch.tensor([face.box for face in faces]),
        image_index=torch.zeros(len(faces), dtype=torch.long),
        landmarks=torch.from_numpy(np.stack([face.landmark_array() for face in faces])),
    )
    before, after = (
        judge.embed(align_faces(from_uint8(picture)[None], regions, judge.template, judge.input_size))
        for picture in (original, reconstruction)
    )
    return F.cosine_similarity(before, after)
