import numpy as np
import pytest
import torch

from imtok.pretrained.mtcnn import _suppress_nested

data = pytest.importorskip("skimage.data")

LANDMARKS = [(203, 101), (246, 103.5), (224, 128), (203, 140), (245, 141)]
"""Of the astronaut, annotated by hand: left and right eye, nose, left and right mouth corner as seen in the picture."""


@pytest.fixture
def detector(needs):
    return needs("face_detector/mtcnn")


def test_detects_the_astronauts_face_and_landmarks(detector) -> None:
    faces = detector.detect(data.astronaut())
    assert len(faces) == 1
    assert faces.scores[0] > 0.99
    np.testing.assert_allclose(faces.landmarks[0], LANDMARKS, atol=3)
    x0, y0, x1, y1 = faces.boxes[0]
    assert 170 < x0 < 190 < 255 < x1 < 275
    assert 50 < y0 < 80 < 160 < y1 < 185


def test_landmarks_follow_mirroring_shifting_and_scaling(detector) -> None:
    picture = data.astronaut()[:256, 100:356]
    (expected,) = detector.detect(picture).landmarks
    (mirrored,) = detector.detect(np.ascontiguousarray(picture[:, ::-1])).landmarks
    mirrored = mirrored[[1, 0, 2, 4, 3]] * [-1, 1] + [256, 0]
    np.testing.assert_allclose(mirrored, expected, atol=3)
    (shifted,) = detector.detect(np.pad(picture, ((30, 0), (40, 0), (0, 0)))).landmarks
    np.testing.assert_allclose(shifted - [40, 30], expected, atol=3)
    (doubled,) = detector.detect(picture.repeat(2, 0).repeat(2, 1)).landmarks
    np.testing.assert_allclose(doubled / 2, expected, atol=3)


def test_several_faces_are_each_detected_once_inside_the_picture(detector) -> None:
    face = data.astronaut()[40:200, 150:300]
    faces = detector.detect(np.concatenate([face, face, face], axis=1))
    assert len(faces) == 3
    assert sorted(np.round((faces.boxes[:, 0] + faces.boxes[:, 2]) / 300 - 0.5).tolist()) == [0, 1, 2]
    tight = data.astronaut()[62:180, 175:275]
    (box,) = detector.detect(tight).boxes
    assert 0 <= box[0] < box[2] <= tight.shape[1]
    assert 0 <= box[1] < box[3] <= tight.shape[0]


@pytest.mark.parametrize("size", [(1, 1), (19, 400), (64, 64), (3, 2000)])
def test_pictures_without_faces_give_empty_arrays(detector, size) -> None:
    faces = detector.detect(np.full((*size, 3), 120, np.uint8))
    assert (faces.boxes.shape, faces.landmarks.shape, faces.scores.shape) == ((0, 4), (0, 5, 2), (0,))
    assert len(detector.detect(data.coffee())) == 0


def test_keeps_the_best_of_nested_boxes_and_all_neighbours() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 2, 6, 6], [8, 0, 18, 10]])
    assert _suppress_nested(boxes, torch.tensor([0.9, 0.8, 0.7])).tolist() == [0, 2]
    assert _suppress_nested(boxes, torch.tensor([0.7, 0.8, 0.9])).tolist() == [2, 1]
