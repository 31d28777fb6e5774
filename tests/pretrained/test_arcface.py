from pathlib import Path

import torch

from imtok.pretrained.arcface import ArcFace, load_arcface


def test_a_state_dict_of_insightfaces_layout_computes_what_insightface_computes(
    tmp_path: Path, synthetic_state, pattern, reference
) -> None:
    """`references/make.py arcface` made the reference with the same made-up weights."""
    torch.save(synthetic_state(ArcFace()), tmp_path / "backbone.pth")
    network = load_arcface(tmp_path / "backbone.pth").freeze()
    wanted = reference("arcface", "embedding")
    with torch.no_grad():
        ours = network.embed(pattern(112, 112))
        shapes = [tuple(one.shape[1:]) for one in network(pattern(112, 112, 1))]
    torch.testing.assert_close(ours, wanted, atol=float(1e-4 * wanted.abs().max()), rtol=0)
    assert shapes == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_the_gradient_to_the_picture_is_right(tmp_path: Path, synthetic_state, pattern, check_gradient) -> None:
    torch.save(synthetic_state(ArcFace()), tmp_path / "backbone.pth")
    network = load_arcface(tmp_path / "backbone.pth").freeze()
    check_gradient(network, lambda net, images: net(images), pattern(112, 112, 1))
