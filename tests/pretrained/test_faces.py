import numpy as np
import pytest
import torch

from imtok.pretrained import ARCFACE_TEMPLATE, DLIB_TEMPLATE
from imtok.pretrained.faces import FrozenPReLU


def test_mobilefacenet_matches_the_tflite_runtime(needs, pattern, reference) -> None:
    """`references/make.py mobilefacenet` made the reference."""
    network = needs("face_features/mobilefacenet")
    expected = reference("mobilefacenet", "embedding")
    torch.testing.assert_close(network.embed(pattern(112, 112)), expected, atol=1e-3, rtol=0)
    shapes = [tuple(one.shape[1:]) for one in network(pattern(112, 112))]
    assert shapes == [(64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7), (512, 7, 7)]


def test_dlib_matches_face_api(needs, pattern, reference) -> None:
    """`references/dlib.mjs` made the reference."""
    network = needs("face_judge/dlib")
    torch.testing.assert_close(network.embed(pattern(150, 150)), reference("dlib", "embedding"), atol=1e-3, rtol=0)


def test_gradients_of_every_map_match_finite_differences(needs, pattern, check_gradient) -> None:
    check_gradient(needs("face_features/mobilefacenet"), lambda network, images: network(images), pattern(112, 112, 1))


def test_gradients_of_the_embedding_match_finite_differences(needs, pattern, check_gradient) -> None:
    for name, size in (("face_features/mobilefacenet", 112), ("face_judge/dlib", 150)):
        check_gradient(needs(name), lambda network, images: [network.embed(images)], pattern(size, size, 1))


def test_frozen_prelu_matches_torch() -> None:
    ours, theirs = FrozenPReLU(4), torch.nn.PReLU(4)
    slopes = torch.tensor([0.25, -0.5, 0.0, 1.5])
    ours.load_state_dict({"weight": slopes})
    theirs.load_state_dict({"weight": slopes})
    x, y = (torch.linspace(-3, 3, 48).view(1, 4, 3, 4).clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(ours(x), theirs(y))
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_networks_have_their_alignment_template(needs) -> None:
    for name, template in (("face_features/mobilefacenet", ARCFACE_TEMPLATE), ("face_judge/dlib", DLIB_TEMPLATE)):
        torch.testing.assert_close(needs(name).template, torch.tensor(template))


@pytest.mark.parametrize(
    ("name", "is_same"),
    [
        ("face_features/mobilefacenet", lambda a, b: torch.cosine_similarity(a, b, dim=0) > 0.5),
        ("face_judge/dlib", lambda a, b: (a - b).norm() < 0.6),
    ],
)
def test_brightened_or_mirrored_face_matches_and_coffee_does_not(needs, name: str, is_same) -> None:
    data = pytest.importorskip("skimage.data")
    warp = pytest.importorskip("skimage.transform")
    network = needs(name)
    landmarks = needs("face_detector/mtcnn").detect(data.astronaut()).landmarks[0]
    transform = warp.SimilarityTransform.from_estimate(landmarks, network.template.numpy())
    face = warp.warp(data.astronaut(), transform.inverse, output_shape=network.input_size) * 2 - 1

    def embed(picture: np.ndarray) -> torch.Tensor:
        return network.embed(torch.tensor(picture).permute(2, 0, 1)[None].float())[0]

    height, width = network.input_size
    assert is_same(embed(face), embed(face * 0.7 + 0.1))
    assert is_same(embed(face), embed(face[:, ::-1].copy()))
    assert not is_same(embed(face), embed(data.coffee()[100 : 100 + height, 200 : 200 + width] / 127.5 - 1))
