"""Whole-picture losses: hand-computed values, gradients, and a distance of zero between equal pictures."""

import pytest
import skimage.data
import torch
from torch import Tensor, nn

from imtok.losses.reconstruction import feature_pairs, l1, l2, perceptual_distance
from imtok.pretrained import FeatureNetwork


class Two(FeatureNetwork):
    """Outputs the picture itself, and its first two channels doubled."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, 2 * images[:, :2]]


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.from_numpy(skimage.data.astronaut()[:96, 180:276]).permute(2, 0, 1)[None] / 127.5 - 1


def test_pixel_losses_match_hand_computed_values():
    images = torch.zeros(2, 3, 1, 2)
    reconstructions = images.clone()
    reconstructions[1, 2] = torch.tensor([0.5, -1.5])
    assert l1(images, reconstructions).item() == pytest.approx(2.0 / 12)
    assert l2(images, reconstructions).item() == pytest.approx(2.5 / 12)


def test_perceptual_distance_matches_hand_computed_value():
    """Two pixels: one keeps its direction (error 0), the other is rotated by 90° (error of unit vectors: 2)."""
    images = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]]).T.view(1, 3, 1, 2)
    reconstructions = torch.tensor([[6.0, 8.0, 0.0], [0.0, 5.0, 0.0]]).T.view(1, 3, 1, 2)
    # each of the two layers: mean over positions of (0, 2) = 1
    assert perceptual_distance(Two(), images, reconstructions).item() == pytest.approx(2.0, abs=1e-5)


def test_perceptual_distance_applies_channel_weights():
    """The rotated pixel has an error of 1 in its old channel and of 1 in its new one."""

    class Weighted(Two):
        def channel_weights(self) -> list[Tensor]:
            return [torch.tensor([0.25, 3.0, 9.0]), torch.tensor([1.0, 0.5])]

    images = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]]).T.view(1, 3, 1, 2)
    reconstructions = torch.tensor([[6.0, 8.0, 0.0], [0.0, 5.0, 0.0]]).T.view(1, 3, 1, 2)
    distance = perceptual_distance(Weighted(), images, reconstructions).item()
    assert distance == pytest.approx((0.25 + 3) / 2 + (1 + 0.5) / 2, abs=1e-5)


def test_perceptual_distance_has_finite_gradients_where_features_vanish():
    reconstructions = torch.zeros(1, 3, 2, 2, requires_grad=True)
    perceptual_distance(Two(), torch.zeros(1, 3, 2, 2), reconstructions).backward()
    assert torch.isfinite(reconstructions.grad).all()


def test_perceptual_gradient_matches_finite_differences():
    torch.manual_seed(0)

    class Tiny(FeatureNetwork):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 5, 3, stride=2).double()

        def forward(self, images: Tensor) -> list[Tensor]:
            first = self.first(images).tanh()
            return [first, self.second(first).tanh()]

    network, images = Tiny().freeze(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    reconstructions = torch.randn_like(images, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: perceptual_distance(network, images, x), reconstructions, fast_mode=True)


def test_feature_pairs_detach_originals_and_convert_bf16_to_fp32():
    class Half(Two):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [features.bfloat16() for features in super().forward(images)]

    images = torch.randn(1, 3, 4, 4, requires_grad=True)
    for original, reconstructed in feature_pairs(Half(), images, torch.randn(1, 3, 4, 4, requires_grad=True)):
        assert not original.requires_grad
        assert reconstructed.requires_grad
        assert original.dtype == reconstructed.dtype == torch.float32


@pytest.mark.parametrize("name", ["perceptual/vgg16", "text_features/craft"])
def test_perceptual_distance_of_real_networks_grows_with_noise(needs, photo, name):
    network = needs(name)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    damaged = [(photo + strength * noise).clamp(-1, 1).requires_grad_() for strength in (0.0, 0.05, 0.3)]
    distances = [perceptual_distance(network, photo, picture) for picture in damaged]
    assert distances[0].item() == 0.0
    assert distances[0] < distances[1] < distances[2]
    distances[2].backward()
    assert damaged[2].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
