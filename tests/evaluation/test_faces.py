import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from imtok.data.annotate import Annotator
from imtok.data.pictures import decode, encode
from imtok.data.sample import Face, Sample
from imtok.evaluation.faces import embed_faces


def test_similarity_falls_with_damage_and_is_one_for_the_same_picture(needs) -> None:
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


def test_no_faces_and_faces_without_landmarks() -> None:
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
