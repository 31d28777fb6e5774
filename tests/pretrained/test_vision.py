import numpy as np
import pytest
import torch

from imtok.pretrained.entries import REGISTRY


def test_vgg16_maps_match_onnxruntime(needs, pattern) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from imtok.pretrained.packages import find_file

    network = needs("perceptual/vgg16")
    source = REGISTRY[network.name]
    assert source.package is not None
    model = onnx.load(find_file(source.package, source.files[0]))
    last_of_each_block = (1, 3, 6, 9, 12)
    edges = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    edges = [edges[index] for index in last_of_each_block]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(edge) for edge in edges)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    images = pattern(240, 240, 1)  # the only size that the classifier after the convolutions accepts
    bgr = (images.flip(1) * 127.5 + 127.5).permute(0, 2, 3, 1).numpy() - np.float32([103.939, 116.779, 123.68])
    for ours, theirs in zip(network(images), session.run(edges, {"input": bgr}), strict=True):
        assert np.linalg.norm(ours.numpy() - theirs) < 2e-5 * np.linalg.norm(theirs)  # features reach hundreds


def test_vgg16_gradients_of_every_map_match_finite_differences(needs, pattern, check_gradient) -> None:
    check_gradient(needs("perceptual/vgg16"), lambda network, images: network(images), pattern(32, 32, 1))


def test_vgg16_distance_grows_with_blur(needs) -> None:
    data = pytest.importorskip("skimage.data")
    network = needs("perceptual/vgg16")
    picture = torch.tensor(data.astronaut()[50:178, 160:288]).permute(2, 0, 1)[None].float() / 127.5 - 1
    distances = []
    for factor in (2, 4, 8):
        small = torch.nn.functional.interpolate(picture, scale_factor=1 / factor, mode="area")
        blurred = torch.nn.functional.interpolate(small, (128, 128), mode="bilinear")
        pairs = zip(network(picture), network(blurred), strict=True)
        distances.append(sum(float((a - b).square().mean() / a.square().mean()) for a, b in pairs))
    assert distances == sorted(distances)


def test_efficientnet_features_match_timm(needs, pattern, reference) -> None:
    """`references/make.py efficientnet_lite0` made the reference."""
    features = needs("vision/efficientnet_lite0").embed(pattern(224, 224))
    torch.testing.assert_close(features[:, ::5], reference("efficientnet_lite0", "embedding"), atol=1e-3, rtol=0)


def test_efficientnet_takes_any_size_and_distinguishes_pictures(needs) -> None:
    data = pytest.importorskip("skimage.data")
    network = needs("vision/efficientnet_lite0")

    def embed(picture: np.ndarray) -> torch.Tensor:
        return network.embed(torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]

    cat, small_cat, coffee = embed(data.cat()), embed(data.cat()[::2, ::2]), embed(data.coffee())
    assert cat.shape == (1280,)
    assert torch.cosine_similarity(cat, small_cat, dim=0) > 0.7 > torch.cosine_similarity(cat, coffee, dim=0)
