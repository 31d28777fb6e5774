"""Are faces still the same person? A judge that had no part in training compares them."""

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
"""Compares, unless another is named."""


@runtime_checkable
class FaceJudge(Protocol):
    """Embeds aligned faces.

    Attributes:
        name: role/name in the registry.
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
        ConfigError: the judge answers NaN or infinity.
    """
    if not faces:
        return torch.zeros(0, 1)
    assert judge.input_size is not None, "a face judge has an input size"
    regions = Regions(
        boxes=torch.tensor([face.box for face in faces]),
        image_index=torch.zeros(len(faces), dtype=torch.long),
        landmarks=torch.from_numpy(np.stack([face.landmark_array() for face in faces])),
    )
    found = judge.embed(align_faces(from_uint8(picture)[None], regions, judge.template, judge.input_size))
    return check_finite(found, judge.name)


def size_ratio(face: Face, width: int, height: int) -> float:
    """Size of a face as TokBench's files state it, else the longer side of its box over the picture's longer side.

    How TokBench measures it could not be verified.
    """
    if face.ratio is not None:
        return face.ratio
    x0, y0, x1, y1 = face.box
    return max(x1 - x0, y1 - y0) / max(width, height)


@dataclass(frozen=True)
class Faces:
    """The faces of a batch that are scored: the index of each one's picture, its bucket, and its similarities."""

    pictures: list[int]
    faces: list[Face]
    buckets: list[int]
    rules: set[str]
    too_small: int
    similarities: dict[str, list[float]]


class FaceMeter(Meter[Faces]):
    """Cosine between the judge's embeddings of each face before and after, in size buckets whose means are averaged.

    Args:
        judge: compares the faces.
        buckets: which version of TokBench's.
        cache: keeps the embeddings of originals.
    """

    what = "faces"

    def __init__(self, judge: FaceJudge, buckets: FaceBuckets = "second", cache: EvaluationCache | None = None) -> None:
        self.judge, self._cache = judge, cache or EvaluationCache()
        self.buckets: FaceBuckets = buckets
        self._similarities: dict[str, list[float]] = defaultdict(list)  # in the order of the faces
        self._places: list[tuple[int, int]] = []
        self._too_small = 0
        self._rules: set[str] = set()

    def process(self, shown: Sequence[OriginalPicture], drawn: Mapping[str, Sequence[ReconstructedPicture]]) -> Faces:
        scored: list[list[Face]] = [[] for _ in shown]
        buckets: list[int] = []
        rules: set[str] = set()
        too_small = 0
        for one, inside in zip(shown, scored, strict=True):
            rule = face_buckets(max(one.prepared.shape[:2]), self.buckets)
            for face in one.sample.faces or []:
                bucket = rule.index(size_ratio(face, one.sample.width, one.sample.height))
                if bucket is None or not face.can_be_aligned:
                    too_small += 1
                    continue
                inside.append(face)
                buckets.append(bucket)
                rules.add(str(rule))
        before = self._embed_originals(shown, scored)
        similarities = {}
        for name, several in drawn.items():
            after = [embed_faces(self.judge, one.restored, inside) for one, inside in zip(several, scored, strict=True)]
            pairs = zip(before, after, strict=True)
            similarities[name] = [value for pair in pairs for value in F.cosine_similarity(*pair).tolist()]
        return Faces(
            pictures=[index for index, inside in enumerate(scored) for _ in inside],
            faces=[face for inside in scored for face in inside],
            buckets=buckets,
            rules=rules,
            too_small=too_small,
            similarities=similarities,
        )

    def _embed_originals(self, shown: Sequence[OriginalPicture], scored: Sequence[list[Face]]) -> list[Tensor]:
        keys = keys_of(self.judge, shown, [[(face.box, face.landmarks) for face in inside] for inside in scored])

        def ask(places: list[int]) -> list[list[list[float]]]:
            return [embed_faces(self.judge, shown[place].original, scored[place]).tolist() for place in places]

        found = self._cache.get_or_compute(keys, ask)
        return [torch.tensor(vectors) if vectors else torch.zeros(0, 1) for vectors in found]

    def add(self, found: Faces, groups: Sequence[int]) -> None:
        self._rules |= found.rules
        self._too_small += found.too_small
        self._places += [(groups[index], bucket) for index, bucket in zip(found.pictures, found.buckets, strict=True)]
        for name, similarities in found.similarities.items():
            self._similarities[name] += similarities

    def results(self, name: str) -> dict[str, Measurement]:
        if not self._places:
            return {}
        groups, buckets = zip(*self._places, strict=True)
        note = f"{self._too_small} faces too small or without landmarks; buckets: {' and '.join(sorted(self._rules))}"
        return {
            "face_similarity": Measurement(
                items=make_items(self._similarities[name], groups, buckets, BUCKET_NAMES),
                network=self.judge.name,
                sha256=self.judge.sha256,
                note=note,
            )
        }

    def items(self, shown: Sequence[OriginalPicture], found: Faces) -> list[dict[str, Any]]:
        return [
            {
                "kind": "face",
                **shown[picture].place,
                "box": list(face.box),
                "similarity": {name: values[index] for name, values in found.similarities.items()},
            }
            for index, (picture, face) in enumerate(zip(found.pictures, found.faces, strict=True))
        ]
