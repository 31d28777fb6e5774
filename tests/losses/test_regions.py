"""Text and face loss: hand-computed values, and the extent of their gradients."""

import dataclasses

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imtok.config import ConfigError, from_dict, to_dict
from imtok.layers.crops import Regions, align_faces
from imtok.losses.regions import FaceLossConfig, TextLossConfig, face_loss, text_loss
from imtok.pretrained import FeatureNetwork

UNWEIGHTED = TextLossConfig(area_weighted=False)
TEMPLATE = torch.tensor([[2.0, 2], [6, 2], [4, 4], [2.5, 6], [5.5, 6]])


class Layers(FeatureNetwork):
    """Two feature maps with distances computable by hand: the picture, and ten times its mean over 2 x 2 pixels."""

    input_size = (4, 8)

    def forward(self, images: Tensor) -> list[Tensor]:
        assert images.shape[2:] == self.input_size
        return [images, 10 * F.avg_pool2d(images, 2)]


class Canvas(Layers):
    input_size = (8, 8)
    template = TEMPLATE


class Tiny(FeatureNetwork):
    """A small smooth network in float64."""

    input_size = (8, 8)
    template = TEMPLATE

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 5, 3, stride=2).double()

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images).tanh()
        return [first, self.second(first)]


def words(*boxes: list[float], index: list[int]) -> Regions:
    return Regions(torch.tensor(boxes, dtype=torch.float32), torch.tensor(index))


def flat_pictures() -> tuple[Tensor, Tensor]:
    """Two pictures of 10 x 20 pixels: the first is off by .1 in red and .2 in green, the second by .3 in blue."""
    images = torch.full((2, 3, 10, 20), 0.5)
    reconstructions = images.clone()
    reconstructions[0, 0] += 0.1
    reconstructions[0, 1] -= 0.2
    reconstructions[1, 2] += 0.3
    return images, reconstructions


def test_text_loss_matches_hand_computed_values():
    images, reconstructions = flat_pictures()
    regions = words([0, 0, 10, 4], [2, 2, 6, 7], [5, 1, 20, 9], index=[0, 0, 1])
    # per position: .05 in the first picture, .09 in the second; the other layer has 100 times as much; mean of both
    first, second = 0.05 * 101 / 2, 0.09 * 101 / 2
    expected = (first * 40 / 200 + first * 20 / 200 + second * 120 / 200) / 2
    assert text_loss(Layers(), images, reconstructions, regions, TextLossConfig()).item() == pytest.approx(
        expected, rel=1e-5
    )
    expected = (2 * first + second) / 2
    assert text_loss(Layers(), images, reconstructions, regions, UNWEIGHTED).item() == pytest.approx(expected, rel=1e-5)
    # energy of the originals: .75 per position, and 100 times that; so both layers now have equal weights
    expected = (0.05 * 60 / 200 + 0.09 * 120 / 200) / 0.75 / 2
    scaled = text_loss(Layers(), images, reconstructions, regions, TextLossConfig(layer_scale="energy"))
    assert scaled.item() == pytest.approx(expected, rel=1e-5)


def test_face_loss_matches_hand_computed_values():
    """The landmarks are the template, translated inside the picture: aligned crops have the picture's own colour."""
    images, reconstructions = flat_pictures()
    landmarks = torch.stack([TEMPLATE + torch.tensor([6.0, 1.0]), TEMPLATE + torch.tensor([12.0, 2.0])])
    faces = Regions(torch.tensor([[6.0, 0, 14, 10], [12, 2, 20, 10]]), torch.tensor([0, 1]), landmarks)
    first, second = 0.05 * 101 / 2, 0.09 * 101 / 2
    expected = (first * 80 / 200 + second * 64 / 200) / 2
    assert face_loss(Canvas(), images, reconstructions, faces, FaceLossConfig()).item() == pytest.approx(
        expected, rel=1e-5
    )
    expected = (first + second) / 2
    unweighted = face_loss(Canvas(), images, reconstructions, faces, FaceLossConfig(area_weighted=False))
    assert unweighted.item() == pytest.approx(expected, rel=1e-5)


def test_micro_batch_losses_average_to_the_batch_loss():
    """Also if one of them has no regions; gradient accumulation and several ranks rely on this."""
    images, reconstructions = flat_pictures()
    regions = words([0, 0, 10, 4], [2, 2, 6, 7], index=[0, 0])
    whole = text_loss(Layers(), images, reconstructions, regions, TextLossConfig())
    parts = [
        text_loss(
            Layers(), images[i : i + 1], reconstructions[i : i + 1], regions.in_images(i, i + 1), TextLossConfig()
        )
        for i in range(2)
    ]
    assert sum(parts).item() / 2 == pytest.approx(whole.item(), rel=1e-6)


def test_loss_without_regions_is_zero_and_has_a_graph():
    reconstructions = torch.rand(2, 3, 10, 20, requires_grad=True)
    for loss in (
        text_loss(Layers(), torch.rand(2, 3, 10, 20), reconstructions, Regions.empty(), TextLossConfig()),
        face_loss(Canvas(), torch.rand(2, 3, 10, 20), reconstructions, Regions.empty(True), FaceLossConfig()),
    ):
        assert loss.item() == 0.0
        loss.backward()
        assert not reconstructions.grad.any()


def test_text_gradient_is_limited_to_boxes_in_reconstructions():
    images, reconstructions = (torch.randn(2, 3, 30, 40, requires_grad=True) for _ in range(2))
    regions = words([3, 4, 25, 12], [10.5, 8, 30, 20.25], index=[1, 1])
    text_loss(Layers(), images, reconstructions, regions, TextLossConfig()).backward()
    assert images.grad is None
    outside = torch.ones(30, 40, dtype=torch.bool)
    outside[4:12, 3:25] = outside[8:21, 10:30] = False
    assert not reconstructions.grad[0].any()
    assert not reconstructions.grad[1][:, outside].any()
    assert reconstructions.grad[1][:, ~outside].all()


@pytest.mark.parametrize("layer_scale", ["none", "energy"])
def test_gradients_match_finite_differences(layer_scale):
    network = Tiny().freeze()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 9, 10, dtype=torch.float64, generator=generator) * 2 - 1
    reconstructions = torch.rand(2, 3, 9, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    boxes = torch.tensor([[1.0, 0.5, 9, 8], [0, 2, 5.25, 9]])
    regions = Regions(boxes, torch.tensor([1, 0]), TEMPLATE + torch.rand(2, 5, 2, generator=generator))
    assert torch.autograd.gradcheck(
        lambda x: text_loss(network, images, x, regions, TextLossConfig(layer_scale=layer_scale)),
        reconstructions,
        fast_mode=True,
    )
    assert torch.autograd.gradcheck(
        lambda x: face_loss(network, images, x, regions, FaceLossConfig(layer_scale=layer_scale)),
        reconstructions,
        fast_mode=True,
    )


def test_text_loss_under_autocast_is_close_to_fp32():
    class Single(Tiny):
        def __init__(self):
            super().__init__()
            self.float()

    images, reconstructions = (torch.randn(2, 3, 30, 40, generator=torch.Generator().manual_seed(i)) for i in range(2))
    regions = words([3, 4, 25, 12], [10, 8, 30, 20], index=[0, 1])
    exact = text_loss(Single(), images, reconstructions, regions, TextLossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = text_loss(Single(), images, reconstructions, regions, TextLossConfig())
        same = text_loss(Single(), images, images, regions, TextLossConfig())
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=0.02)
    assert mixed.item() != exact.item()
    assert same.item() == 0.0


def test_rejects_unsuitable_networks_and_faces_without_landmarks():
    images, reconstructions = flat_pictures()
    regions = words([0, 0, 10, 4], index=[0])

    class AnySize(Layers):
        input_size = None

    with pytest.raises(ValueError, match="any size"):
        text_loss(AnySize(), images, reconstructions, regions, TextLossConfig())
    with pytest.raises(ValueError, match="no landmark template"):
        face_loss(Layers(), images, reconstructions, regions, FaceLossConfig())
    with pytest.raises(ValueError, match="without landmarks"):
        face_loss(Canvas(), images, reconstructions, regions, FaceLossConfig())


def test_configs_round_trip_through_json():
    config = dataclasses.replace(FaceLossConfig(), layer_scale="energy")
    assert from_dict(FaceLossConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="layer_scale"):
        from_dict(TextLossConfig, {"layer_scale": "loud"})


@pytest.mark.parametrize("layer_scale", ["none", "energy"])
def test_text_loss_of_a_real_network_grows_with_blur(needs, layer_scale):
    network = needs("text_features/ppocrv6")
    page = torch.from_numpy(skimage.data.page()[:128, :256]).expand(1, 3, -1, -1) / 127.5 - 1
    regions = words([10, 20, 90, 50], [100, 60, 180, 90], index=[0, 0])
    config = TextLossConfig(layer_scale=layer_scale)
    blurred = [F.avg_pool2d(page, k, 1, k // 2, count_include_pad=False).requires_grad_() for k in (1, 3, 7)]
    losses = [text_loss(network, page, picture, regions, config) for picture in blurred]
    assert losses[0].item() == 0.0
    assert losses[0] < losses[1] < losses[2]
    losses[2].backward()
    outside = torch.ones(128, 256, dtype=torch.bool)
    outside[20:50, 10:90] = outside[60:90, 100:180] = False
    assert not blurred[2].grad[0][:, outside].any()
    assert blurred[2].grad[0][:, ~outside].any()


@pytest.mark.parametrize("layer_scale", ["none", "energy"])
def test_face_loss_of_a_real_network_grows_with_blur(needs, layer_scale):
    network = needs("face_features/mobilefacenet")
    photo = torch.from_numpy(skimage.data.astronaut()[:256, 100:356]).permute(2, 0, 1)[None] / 127.5 - 1
    landmarks = torch.tensor([[[98.0, 112], [141, 107], [124, 133], [107, 153], [142, 149]]])
    faces = Regions(torch.tensor([[75.0, 60, 165, 180]]), torch.tensor([0]), landmarks)
    config = FaceLossConfig(layer_scale=layer_scale)
    blurred = [F.avg_pool2d(photo, k, 1, k // 2, count_include_pad=False).requires_grad_() for k in (1, 5, 11)]
    losses = [face_loss(network, photo, picture, faces, config) for picture in blurred]
    assert losses[0].item() == 0.0
    assert losses[0] < losses[1] < losses[2]
    losses[2].backward()
    coverage = torch.ones_like(photo).requires_grad_()
    align_faces(coverage, faces, network.template, network.input_size).sum().backward()
    assert not blurred[2].grad[coverage.grad == 0].any()
