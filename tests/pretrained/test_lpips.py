"""LPIPS with random weights in the published files' names and shapes, against torchvision's layers and the formula."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from imtok import pretrained
from imtok.config import ConfigError
from imtok.losses.reconstruction import perceptual_distance

LAST = (3, 8, 15, 22, 29)
"""Indices of the ReLUs 1_2, 2_2, 3_3, 4_3 and 5_3 among torchvision's layers."""
CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def trunk() -> torch.nn.Sequential:
    with torch.device("meta"):
        layers = make_layers(cfgs["D"])
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape) for name, value in layers.state_dict().items()}
    state = {name: value * (0.1 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5) for name, value in state.items()}
    layers.load_state_dict(state, assign=True)
    return layers


@pytest.fixture(scope="module")
def heads() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"lin{index}.model.1.weight": torch.rand(1, count, 1, 1) for index, count in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def folder(trunk, heads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips")
    classifier = {"classifier.6.weight": torch.zeros(2, 2)}
    trained = {f"features.{name}": value for name, value in trunk.state_dict().items()}
    torch.save(trained | classifier, path / "vgg16-397923af.pth")
    torch.save(heads, path / "vgg.pth")
    return path


def test_distance_matches_the_formula(folder: Path, trunk, heads, pattern) -> None:
    network = pretrained.load("perceptual/lpips_vgg", file=folder)
    first, second = pattern(48, 32).split(1)
    maps: list[list[np.ndarray]] = []
    for picture in (first, second):
        mean, deviation = (
            torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        x = ((picture + 1) / 2 - mean) / deviation  # torchvision's normalization of ImageNet
        found = []
        with torch.no_grad():
            for index, layer in enumerate(trunk):
                x = layer(x)
                found += [x[0].double().numpy().copy()] if index in LAST else []
        maps.append(found)
    expected = 0.0
    for a, b, weights in zip(*maps, heads.values(), strict=True):
        normalized = [one / np.sqrt((one**2).sum(0)) for one in (a, b)]
        expected += np.einsum("c,chw->hw", weights.flatten().numpy(), (normalized[0] - normalized[1]) ** 2).mean()
    with torch.no_grad():
        assert perceptual_distance(network, first, second).item() == pytest.approx(expected, rel=1e-4)
    assert len(network.sha256) == 64
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_hash_covers_both_files_and_incomplete_files_are_rejected(folder: Path, heads, tmp_path: Path) -> None:
    (tmp_path / "vgg16-397923af.pth").symlink_to(folder / "vgg16-397923af.pth")
    with pytest.raises(ConfigError, match=r"vgg\.pth: no such file"):
        pretrained.load("perceptual/lpips_vgg", file=tmp_path)
    torch.save(dict(list(heads.items())[:4]), tmp_path / "vgg.pth")
    with pytest.raises(ConfigError, match=r"vgg\.pth: not the weights of LPIPS's channels: lin4.* is missing"):
        pretrained.load("perceptual/lpips_vgg", file=tmp_path)
    torch.save({name: 2 * value for name, value in heads.items()}, tmp_path / "vgg.pth")
    one, two = (pretrained.load("perceptual/lpips_vgg", file=path) for path in (folder, tmp_path))
    assert one.sha256 != two.sha256
