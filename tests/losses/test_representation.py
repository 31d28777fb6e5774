import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from imtok import presets, pretrained
from imtok.config import ConfigError
from imtok.losses.representation import (
    RepresentationConfig,
    RepresentationHead,
    RepresentationTarget,
    representation_loss,
)
from imtok.training.tasks import TokenizerTask


def test_info_nce_by_hand() -> None:
    wanted = torch.eye(4) * 3
    config = RepresentationConfig()
    certain = math.log(math.e + 3) - 1  # cosine 1 with its own, 0 with three others, temperature 1
    assert representation_loss(wanted * 2, wanted, config).item() == pytest.approx(certain)
    ignorant = torch.ones(4, 4)
    assert representation_loss(ignorant, wanted, config).item() == pytest.approx(math.log(4))
    cold = RepresentationConfig(temperature=0.01)
    assert representation_loss(wanted, wanted, cold).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_is_one_direction_and_moves_only_the_prediction() -> None:
    torch.manual_seed(0)
    predicted, wanted = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss = representation_loss(predicted, wanted, RepresentationConfig(temperature=0.5))
    logits = F.cosine_similarity(predicted[:, None], wanted[None], dim=-1) / 0.5
    expected = -(logits.diagonal() - logits.logsumexp(1)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert predicted.grad is not None
    assert wanted.grad is None


def test_cosine_regression() -> None:
    wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    config = RepresentationConfig(kind="cosine")
    assert representation_loss(3 * wanted, wanted, config).item() == pytest.approx(0)
    assert representation_loss(wanted.flip(1), wanted, config).item() == pytest.approx(1)


def test_a_head_answers_with_one_vector_for_any_grid() -> None:
    torch.manual_seed(0)
    head = RepresentationHead(8, 32, RepresentationConfig(grid_size=4, num_heads=4, depth=2))
    codes = torch.randn(2, 24, 8, requires_grad=True)
    answer = head(codes, (4, 6))
    assert answer.shape == (2, 32)
    answer.sum().backward()
    assert codes.grad is not None
    assert (codes.grad.abs().sum(2) > 0).all()  # every token has a say


def test_heads_have_the_published_size() -> None:
    """The authors' heads: 39.1M for CLIP ViT-L/14's 1024 channels, 22.1M for 768, 5.6M for 384."""
    for dim, millions in ((1024, 39.1), (768, 22.1), (384, 5.6)):
        with torch.device("meta"):
            head = RepresentationHead(8, dim, RepresentationConfig())
        assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def task(**target: object) -> TokenizerTask:
    base = presets.get("fqgan-debug")
    values = {"branch": 1, "network": "vision/efficientnet_lite0", "dim": 1280, **target}
    representation = RepresentationConfig(targets=(RepresentationTarget(**values),), depth=1, grid_size=8)  # pyright: ignore
    losses = dataclasses.replace(base.losses, representation_weight=0.5, representation=representation)
    return TokenizerTask(dataclasses.replace(base, losses=losses))


def test_heads_train_with_the_tokenizer_and_are_no_part_of_it() -> None:
    ours = task()
    heads = {id(p) for p in ours.heads.parameters()}
    assert heads
    assert heads <= {id(p) for p in ours.parameters_of("tokenizer")}
    assert not heads & {id(p) for p in ours.tokenizer.parameters()}
    assert any(name.startswith("heads.") for name in ours.state_dict())  # what resuming needs
    assert not any("head" in name for name in ours.model.weights())


def test_targets_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is for branch 2, counted from 0, and the tokenizer has 2"):
        task(branch=2)
    with pytest.raises(ConfigError, match="8 heads must divide dim"):
        task(dim=1281)

    class Embedder(torch.nn.Module):
        embed_dim = 640

    monkeypatch.setattr(pretrained, "load", lambda name: Embedder())
    ours = task()
    with pytest.raises(ConfigError, match="vision/efficientnet_lite0 embeds in 640 channels, not 1280"):
        ours.prepare(ours.config.training.phases, torch.device("cpu"))


def test_a_step_with_the_real_network(needs) -> None:
    needs("vision/efficientnet_lite0")
    ours = task()
    phases = [dataclasses.replace(phase, weights={}) for phase in ours.config.training.phases]
    ours.prepare(phases, torch.device("cpu"))
    ours.start_phase(phases[1])
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    encoding = ours.tokenizer.train().encode(images)
    loss = ours._representation_loss(images, encoding)
    assert 0 < loss.item() < 2 * math.log(3)
    loss.backward()
    assert ours.tokenizer.get_parameter("encoder.branches.1.adapter.positions.table").grad is not None
    other = ours.tokenizer.get_parameter("encoder.branches.0.adapter.positions.table").grad
    assert other is None or other.abs().max() == 0
