"""Are faces still the same person? A judge that had no part in training compares them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Face
from imtok.layers.crops import Regions, align_faces


@runtime_checkable
class FaceJudge(Protocol):
    """Embeds aligned faces.

    Attributes:
        name: role/name behind the door.
        sha256: of its weights.
        input_size: of a face.
        template: where its five landmarks shall lie.
    """

    name: str
    sha256: str
    input_size: tuple[int, int] | None
    template: Tensor

    def embed(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings of faces in [-1, 1] that lie on `template`."""
        ...


@torch.no_grad()
def embed_faces(judge: FaceJudge, picture: Picture, faces: Sequence[Face]) -> Float[Tensor, "faces dim"]:
    """The judge's embedding of each face.

    For a reconstruction too the landmarks are those of the original, as in TokBench: nothing is detected on it.

    Args:
        judge: of the role `face_judge`.
        picture: that the faces belong to, or its reconstruction of the same size.
        faces: with landmarks.

    Raises:
        ValueError: a face without landmarks.
    """
    if not faces:
        return torch.zeros(0, 1)
    assert judge.input_size is not None, "a face judge has an input size"
    regions = Regions(
        boxes=torch.tensor([face.box for face in faces]),
        image_index=torch.zeros(len(faces), dtype=torch.long),
        landmarks=torch.from_numpy(np.stack([face.landmark_array() for face in faces])),
    )
    return judge.embed(align_faces(from_uint8(picture)[None], regions, judge.template, judge.input_size))


def size_ratio(face: Face, width: int, height: int) -> float:
    """Size of a face: the longer side of its box as a share of the picture's longer side.

    How TokBench measures it could not be verified.
    """
    x0, y0, x1, y1 = face.box
    return max(x1 - x0, y1 - y0) / max(width, height)
