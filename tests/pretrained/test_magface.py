"""MagFace's checkpoint layout, on a small instance; its blocks are ArcFace's and are tested with ArcFace."""

from functools import partial
from pathlib import Path

import pytest
import torch

from imtok.config import ConfigError
from imtok.pretrained import magface
from imtok.pretrained.arcface import ArcFace

SMALL = (1, 1, 1, 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one block per stage."""
    monkeypatch.setattr(magface, "MagFace", partial(magface.MagFace, SMALL))


def test_loads_both_checkpoint_prefixes_and_converts_input_to_bgr(
    small: None, tmp_path: Path, synthetic_state, pattern
) -> None:
    state = synthetic_state(ArcFace(SMALL))
    arcface = ArcFace(SMALL).eval()
    arcface.load_state_dict(state)
    for module in arcface.modules():
        if hasattr(module, "eps"):
            module.eps = 2e-5  # pyright: ignore[reportAttributeAccessIssue]
    images = pattern(112, 112)
    for prefix in ("features.module.", "module.features."):  # its authors' loader accepts both
        file = {f"{prefix}{name}": value for name, value in state.items()} | {"fc.weight": torch.zeros(3, 3)}
        torch.save({"epoch": 25, "arch": "iresnet100", "state_dict": file}, tmp_path / "magface.pth")
        network = magface.load_magface(tmp_path / "magface.pth").freeze()
        with torch.no_grad():
            expected, found = arcface.embed((images[:, [2, 1, 0]] + 1) * 0.5), network.embed(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=0.1)


def test_full_network_has_the_depth_of_iresnet_100() -> None:
    with torch.device("meta"):
        network = magface.MagFace()
    assert [len(getattr(network, f"layer{stage}")) for stage in (1, 2, 3, 4)] == [3, 13, 30, 3]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(65.2e6, rel=0.01)


def test_rejects_another_networks_weights(small: None, tmp_path: Path) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"not the weights of MagFace's iresnet-100: conv1\.weight is missing"):
        magface.load_magface(tmp_path / "other.pth")
