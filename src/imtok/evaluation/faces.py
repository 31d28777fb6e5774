"""Face similarity: a judge that was not used in training compares the faces of originals and reconstructions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Face
from imtok.evaluation.buckets import BUCKET_NAMES, FaceBuckets, face_buckets
from imtok.evaluation.cache import EvaluationCache, keys_of
from imtok.evaluation.meters import Measurement, Meter, OriginalPicture, ReconstructedPicture, check_finite, make_items
from imtok.layers.crops import Regions, align_faces

FACE_JUDGE = "face_judge/dlib"
"""Default face judge."""


@runtime_checkable
class FaceJudge(Protocol):
    """Embeds aligned faces.

    Attributes:
        name: role/name in the registry.
        sha256: hash of its weights.
        input_size: height and width of an aligned face.
        template: target positions of the five landmarks in the aligned face, in pixels.
    """

    name: str
    sha256: str
    input_size: tuple[int, int] | None
    template: Tensor

    def embed(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Return the embeddings of faces in [-1, 1] that are aligned to `template`."""
        ...


@torch.no_grad()
def embed_faces(judge: FaceJudge, picture: Picture, faces: Sequence[Face]) -> Float[Tensor, "faces dim"]:
    """Return the judge's embedding of each face.

    Reconstructions are aligned by the landmarks of the original, as in TokBench; nothing is detected on them.

    Args:
        judge: network of the role `face_judge`.
        picture: the picture that contains the faces, or its reconstruction at the same size.
        faces: faces with landmarks.

    Raises:
        ValueError: a face has no landmarks.
        ConfigError: the judge outputs NaN or infinity.
    """
    if not faces:
        return torch.zeros(0, 1)
    assert judge.input_size is not None, "a face judge has an input size"
    regions = Regions(
        boxes=torch.tensor([face.box for face in faces]),
        image_index=torch.zeros(len(faces), dtype=torch.long),
        landmarks=torch.from_numpy(np.stack([face.landmark_array() for face in faces])),
    )
    embeddings = judge.embed(align_faces(from_uint8(picture)[None], regions, judge.template, judge.input_size))
    return check_finite(embeddings, judge.name)


def size_ratio(face: Face, width: int, height: int) -> float:
    """Return the size of a face as a share of the picture's longer side.

    If TokBench's files state the size, that value is returned, otherwise the longer side of the face's box over the
    longer side of the picture. How TokBench measures the size could not be verified.

    Args:
        face: the face.
        width: width of the picture.
        height: height of the picture.
    """
    if face.ratio is not None:
        return face.ratio
    x0, y0, x1, y1 = face.box
    return max(x1 - x0, y1 - y0) / max(width, height)


@dataclass(frozen=True)
class Faces:
    """The scored faces of a batch.

    Attributes:
        pictures: index in the batch of each face's picture.
        faces: the faces.
        buckets: size bucket of each face.
        rules: descriptions of the bucket limits that were applied.
        too_small: number of faces that are not scored: below the smallest bucket, or without usable landmarks.
        similarities: cosine similarity of each face, by reconstructor.
    """

    pictures: list[int]
    faces: list[Face]
    buckets: list[int]
    rules: set[str]
    too_small: int
    similarities: dict[str, list[float]]


class FaceMeter(Meter[Faces]):
    """Cosine similarity of each face's embeddings on original and reconstruction, as the mean of size-bucket means.

    Args:
        judge: network that embeds the faces.
        buckets: version of TokBench's size buckets.
        cache: cache of the embeddings of originals.
    """

    what = "faces"

    def __init__(self, judge: FaceJudge, buckets: FaceBuckets = "second", cache: EvaluationCache | None = None) -> None:
        self.judge, self._cache = judge, cache or EvaluationCache()
        self.buckets: FaceBuckets = buckets
        self._similarities: dict[str, list[float]] = defaultdict(list)  # in the order of the faces
        self._groups_and_buckets: list[tuple[int, int]] = []
        self._too_small = 0
        self._rules: set[str] = set()

    def process(
        self, originals: Sequence[OriginalPicture], reconstructions: Mapping[str, Sequence[ReconstructedPicture]]
    ) -> Faces:
        scored: list[list[Face]] = [[] for _ in originals]
        buckets: list[int] = []
        rules: set[str] = set()
        too_small = 0
        for picture, faces in zip(originals, scored, strict=True):
            rule = face_buckets(max(picture.prepared.shape[:2]), self.buckets)
            for face in picture.sample.faces or []:
                bucket = rule.index(size_ratio(face, picture.sample.width, picture.sample.height))
                if bucket is None or not face.can_be_aligned:
                    too_small += 1
                    continue
                faces.append(face)
                buckets.append(bucket)
                rules.add(str(rule))
        before = self._embed_originals(originals, scored)
        similarities = {}
        for name, pictures in reconstructions.items():
            after = [
                embed_faces(self.judge, picture.restored, faces)
                for picture, faces in zip(pictures, scored, strict=True)
            ]
            pairs = zip(before, after, strict=True)
            similarities[name] = [value for pair in pairs for value in F.cosine_similarity(*pair).tolist()]
        return Faces(
            pictures=[index for index, faces in enumerate(scored) for _ in faces],
            faces=[face for faces in scored for face in faces],
            buckets=buckets,
            rules=rules,
            too_small=too_small,
            similarities=similarities,
        )

    def _embed_originals(self, originals: Sequence[OriginalPicture], scored: Sequence[list[Face]]) -> list[Tensor]:
        keys = keys_of(self.judge, originals, [[(face.box, face.landmarks) for face in faces] for faces in scored])

        def embed(indices: list[int]) -> list[list[list[float]]]:
            return [embed_faces(self.judge, originals[index].original, scored[index]).tolist() for index in indices]

        embeddings = self._cache.get_or_compute(keys, embed)
        return [torch.tensor(vectors) if vectors else torch.zeros(0, 1) for vectors in embeddings]

    def add(self, found: Faces, groups: Sequence[int]) -> None:
        self._rules |= found.rules
        self._too_small += found.too_small
        self._groups_and_buckets += [
            (groups[index], bucket) for index, bucket in zip(found.pictures, found.buckets, strict=True)
        ]
        for name, similarities in found.similarities.items():
            self._similarities[name] += similarities

    def results(self, name: str) -> dict[str, Measurement]:
        if not self._groups_and_buckets:
            return {}
        groups, buckets = zip(*self._groups_and_buckets, strict=True)
        note = f"{self._too_small} faces too small or without landmarks; buckets: {' and '.join(sorted(self._rules))}"
        return {
            "face_similarity": Measurement(
                items=make_items(self._similarities[name], groups, buckets, BUCKET_NAMES),
                network=self.judge.name,
                sha256=self.judge.sha256,
                note=note,
            )
        }

    def items(self, originals: Sequence[OriginalPicture], found: Faces) -> list[dict[str, Any]]:
        return [
            {
                "kind": "face",
                **originals[picture].place,
                "box": list(face.box),
                "similarity": {name: values[index] for name, values in found.similarities.items()},
            }
            for index, (picture, face) in enumerate(zip(found.pictures, found.faces, strict=True))
        ]
