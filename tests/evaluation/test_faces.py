import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from imtok.config import ConfigError
from imtok.data.annotate import Annotator
from imtok.data.pictures import decode, encode
from imtok.data.sample import Face, Sample
from imtok.evaluation.buckets import FaceBuckets
from imtok.evaluation.faces import FaceMeter, embed_faces
from imtok.evaluation.meters import OriginalPicture, ReconstructedPicture
from imtok.evaluation.reconstructors import Reconstruction


def test_similarity_is_one_for_the_original_and_falls_with_compression(needs) -> None:
    judge = needs("face_judge/dlib")
    picture = data.astronaut()
    sample = Sample(image=encode(picture), path="astronaut", width=512, height=512)
    faces = Annotator(face_detector=needs("face_detector/mtcnn")).annotate(sample, picture).faces
    assert faces is not None
    assert len(faces) == 1
    versions = [picture, *(decode(encode(picture, "JPEG", quality=quality)) for quality in (60, 10, 2))]
    embeddings = torch.cat([embed_faces(judge, version, faces) for version in versions])
    scores = F.cosine_similarity(embeddings[:1], embeddings).tolist()
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.97


def test_no_faces_give_no_embeddings_and_landmarks_are_required() -> None:
    picture = np.zeros((32, 32, 3), dtype=np.uint8)

    class Judge:
        name = sha256 = ""
        input_size = (16, 16)
        template = torch.rand(5, 2)

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    assert len(embed_faces(Judge(), picture, [])) == 0
    with pytest.raises(ValueError, match="no landmarks"):
        embed_faces(Judge(), picture, [Face(box=(0.0, 0.0, 8.0, 8.0))])


def test_judge_that_outputs_nan_is_named_in_the_error() -> None:
    class Judge:
        name, sha256, input_size, template = "face_judge/broken", "", (16, 16), torch.rand(5, 2)

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) * torch.nan

    face = Face(box=(0.0, 0.0, 16.0, 16.0), landmarks=((4.0, 4.0), (12.0, 4.0), (8.0, 8.0), (5.0, 12.0), (11.0, 12.0)))
    with pytest.raises(ConfigError, match="face_judge/broken: outputs NaN or infinity"):
        embed_faces(Judge(), np.zeros((32, 32, 3), dtype=np.uint8), [face])


@pytest.mark.parametrize("version", ["first", "second"])
def test_scored_faces_and_their_buckets_follow_tokbench(version: FaceBuckets) -> None:
    """Which faces are scored and in which bucket, with a judge that rotates each embedding by a known angle."""
    table = [(20, 10.0, True), (40, 20.0, True), (60, 30.0, True), (150, 40.0, True), (150, 90.0, False)]

    class Judge:
        name, sha256, input_size, template = "face_judge/table", "0", (8, 8), torch.rand(5, 2)
        turned = False

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            angles = [angle for side, angle, aligned in table if aligned and (version == "first" or side > 20)]
            radians = torch.deg2rad(torch.tensor(angles)) * self.turned
            self.turned = True
            return torch.stack([radians.cos(), radians.sin()], dim=1)

    points = ((1.0, 1.0), (5.0, 1.0), (3.0, 3.0), (1.0, 5.0), (5.0, 5.0))
    faces = [
        Face(box=(0.0, 0.0, float(side), 5.0), landmarks=points if aligned else None) for side, _, aligned in table
    ]
    picture = np.zeros((512, 512, 3), dtype=np.uint8)
    sample = Sample(image=b"", path="x", width=512, height=512, faces=faces)
    originals = [OriginalPicture(row=0, sample=sample, original=picture, prepared=picture, content=picture)]
    meter = FaceMeter(Judge(), version)
    processed = meter.process(
        originals, {"one": [ReconstructedPicture(output=Reconstruction(picture), content=picture, restored=picture)]}
    )
    meter.add(processed, groups=[0])
    measurement = meter.results("one")["face_similarity"]
    assert measurement.items is not None
    # Limits of 512 px: .05, .1 and .2 of the side, or 0, .05 and .2 in the first version.
    angles, buckets, skipped = (
        ([20, 30, 40], [0, 1, 2], 2) if version == "second" else ([10, 20, 30, 40], [0, 1, 1, 2], 1)
    )
    assert measurement.items.values.tolist() == pytest.approx(np.cos(np.deg2rad(angles)).tolist(), abs=1e-6)
    assert measurement.items.buckets is not None
    assert measurement.items.buckets.tolist() == buckets
    assert (measurement.note or "").startswith(f"{skipped} faces too small or without landmarks")
