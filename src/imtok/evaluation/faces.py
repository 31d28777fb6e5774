"""Are faces still the same person? A judge that had no part in training compares them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imtok.data.pictures import Picture, from_uint8
from imtok.data.sample import Face
from imtok.evaluation.buckets import BUCKET_NAMES, FaceBuckets, face_buckets
from imtok.evaluation.cache import Cache, key_of
from imtok.evaluation.meters import Drawn, Measurement, Meter, Shown, make_items
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


class FaceMeter(Meter):
    """Cosine between the judge's embeddings of each face before and after, in size buckets whose means are averaged.

    Args:
        judge: compares the faces.
        buckets: which version of TokBench's.
        cache: keeps the embeddings of originals.
    """

    def __init__(self, judge: FaceJudge, buckets: FaceBuckets = "second", cache: Cache | None = None) -> None:
        self.judge, self._cache = judge, cache or Cache()
        self.buckets: FaceBuckets = buckets
        self._similarities: dict[str, list[float]] = defaultdict(list)  # in the order of the faces
        self._places: list[tuple[int, int]] = []
        self._too_small = 0
        self._rules: set[str] = set()

    def see(self, shown: Sequence[Shown]) -> None:
        self._lines: list[tuple[dict[str, Any], Face]] = []  # of the batch, with the place of the picture
        scored_in: list[list[Face]] = []
        for one in shown:
            rule = face_buckets(max(one.prepared.shape[:2]), self.buckets)
            scored: list[Face] = []
            for face in one.sample.faces or []:
                bucket = rule.index(size_ratio(face, one.sample.width, one.sample.height))
                if bucket is None or not face.can_be_aligned:
                    self._too_small += 1
                    continue
                scored.append(face)
                self._lines.append((one.place, face))
                self._places.append((one.group, bucket))
                self._rules.add(str(rule))
            scored_in.append(scored)
        self._batch = list(zip(scored_in, self._embed_originals(shown, scored_in), strict=True))

    def _embed_originals(self, shown: Sequence[Shown], scored_in: Sequence[list[Face]]) -> list[Tensor]:
        keys = [
            key_of(
                self.judge.name, self.judge.sha256, one.sample.image, [[face.box, face.landmarks] for face in scored]
            )
            if scored
            else None
            for one, scored in zip(shown, scored_in, strict=True)
        ]

        def ask(places: list[int]) -> list[list[list[float]]]:
            return [embed_faces(self.judge, shown[place].original, scored_in[place]).tolist() for place in places]

        found = self._cache.recall(keys, ask)
        return [torch.tensor(vectors) if vectors else torch.zeros(0, 1) for vectors in found]

    def compare(self, name: str, drawn: Sequence[Drawn]) -> None:
        for (scored, before), one in zip(self._batch, drawn, strict=True):
            after = embed_faces(self.judge, one.restored, scored)
            self._similarities[name] += F.cosine_similarity(before, after).tolist()

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

    def items(self) -> list[dict[str, Any]]:
        last = {name: found[len(found) - len(self._lines) :] for name, found in self._similarities.items()}
        return [
            {
                "kind": "face",
                **place,
                "box": list(face.box),
                "similarity": {name: found[index] for name, found in last.items()},
            }
            for index, (place, face) in enumerate(self._lines)
        ]
