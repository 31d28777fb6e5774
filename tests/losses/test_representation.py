import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from imtok import presets, pretrained
from imtok.config import ConfigError
from imtok.data.loader import Batch
from imtok.layers.crops import Regions
from imtok.losses.representation import (
    RepresentationConfig,
    RepresentationHead,
    RepresentationTarget,
    representation_loss,
)
from imtok.training.run import Phase
from imtok.training.tasks import TokenizerTask


def test_info_nce_matches_hand_computed_values() -> None:
    wanted = torch.eye(4) * 3
    config = RepresentationConfig()
    expected = math.log(math.e + 3) - 1  # cosine 1 with its own feature, 0 with three others, temperature 1
    assert representation_loss(wanted * 2, wanted, config).item() == pytest.approx(expected)
    uninformative = torch.ones(4, 4)
    assert representation_loss(uninformative, wanted, config).item() == pytest.approx(math.log(4))
    low_temperature = RepresentationConfig(temperature=0.01)
    assert representation_loss(wanted, wanted, low_temperature).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_has_one_direction_and_no_gradient_for_targets() -> None:
    torch.manual_seed(0)
    predicted, wanted = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss = representation_loss(predicted, wanted, RepresentationConfig(temperature=0.5))
    logits = F.cosine_similarity(predicted[:, None], wanted[None], dim=-1) / 0.5
    expected = -(logits.diagonal() - logits.logsumexp(1)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert predicted.grad is not None
    assert wanted.grad is None


def test_pictures_without_features_are_neither_predicted_nor_negatives() -> None:
    torch.manual_seed(0)
    predicted, wanted = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    known = torch.tensor([True, False, True, True, False])
    for kind in ("info_nce", "cosine"):
        config = RepresentationConfig(kind=kind)  # pyright: ignore[reportArgumentType]
        masked = representation_loss(predicted, wanted, config, known)
        assert masked.item() == pytest.approx(representation_loss(predicted[known], wanted[known], config).item())
        (gradient,) = torch.autograd.grad(masked, predicted)
        assert (gradient.abs().sum(1) > 0).tolist() == known.tolist()
        none_known = representation_loss(predicted, wanted, config, torch.zeros(5, dtype=torch.bool))
        assert none_known.item() == 0
        assert not torch.autograd.grad(none_known, predicted)[0].any()


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from imtok.losses.representation import RepresentationConfig, representation_loss
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
predicted, wanted = torch.randn(6, 8), torch.randn(6, 8)
known = torch.tensor([letter == "T" for letter in sys.argv[3]])
mine = slice(3 * rank, 3 * rank + 3)
config = RepresentationConfig(gather=True, temperature=0.3)
loss = representation_loss(predicted[mine], wanted[mine], config, known[mine])
dist.all_reduce(loss)
print(loss.item() / 2)
"""


@pytest.mark.parametrize("known", ["TFTTTF", "TTTFFF", "TTFFFT"])
def test_gathered_negatives_equal_those_of_the_whole_batch(tmp_path: Path, known: str) -> None:
    """Ranks have equal weights, however many known pictures they have; one without any must not block the other."""
    commands = [[sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "meeting"), known] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        losses = [float(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    torch.manual_seed(0)
    predicted, wanted = torch.randn(6, 8), torch.randn(6, 8)
    known_mask = torch.tensor([letter == "T" for letter in known])
    logits = F.cosine_similarity(predicted[:, None], wanted[None], dim=-1) / 0.3
    cross_entropies = logits[:, known_mask].logsumexp(1) - logits.diagonal()
    rank_losses = [cross_entropies[3 * rank : 3 * rank + 3][known_mask[3 * rank : 3 * rank + 3]] for rank in (0, 1)]
    expected = sum(one_rank.mean().item() for one_rank in rank_losses if len(one_rank)) / 2
    assert losses == pytest.approx([expected] * 2, abs=1e-6)


def test_cosine_loss_matches_hand_computed_values() -> None:
    wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    config = RepresentationConfig(kind="cosine")
    assert representation_loss(3 * wanted, wanted, config).item() == pytest.approx(0)
    assert representation_loss(wanted.flip(1), wanted, config).item() == pytest.approx(1)


def test_head_outputs_one_vector_for_any_grid() -> None:
    torch.manual_seed(0)
    head = RepresentationHead(8, 32, RepresentationConfig(grid_size=4, num_heads=4, depth=2))
    codes = torch.randn(2, 24, 8, requires_grad=True)
    vectors = head(codes, (4, 6))
    assert vectors.shape == (2, 32)
    vectors.sum().backward()
    assert codes.grad is not None
    assert (codes.grad.abs().sum(2) > 0).all()  # every token contributes


def test_heads_have_the_published_size() -> None:
    """Parameters of the authors' heads: 39.1M for CLIP ViT-L/14's 1024 channels, 22.1M for 768, 5.6M for 384."""
    for dim, millions in ((1024, 39.1), (768, 22.1), (384, 5.6)):
        with torch.device("meta"):
            head = RepresentationHead(8, dim, RepresentationConfig())
        assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_autocast_does_not_reduce_precision_of_cosines(temperature: float) -> None:
    torch.manual_seed(0)
    wanted = F.normalize(torch.ones(8, 64) + 0.05 * torch.randn(8, 64), dim=1)  # features are similar to each other
    config = RepresentationConfig(temperature=temperature)
    exact = representation_loss(wanted + 0.01, wanted, config)
    with torch.autocast("cpu", torch.bfloat16):
        assert representation_loss(wanted + 0.01, wanted, config).item() == pytest.approx(exact.item(), abs=1e-6)


class Embedder(pretrained.FrozenNetwork):
    """Substitute for a vision network: a fixed random projection of the downsampled picture."""

    embed_dim = 32

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        projection = torch.randn(192, 32, generator=torch.Generator().manual_seed(3))
        return F.adaptive_avg_pool2d(images, 8).flatten(1) @ projection


def task(weight: float = 0.5, entropy: float = 0.0, **target: object) -> TokenizerTask:
    base = presets.get("fqgan-debug")
    values = {"branch": 1, "network": "vision/stub", "dim": 32, **target}
    settings = RepresentationConfig(targets=(RepresentationTarget(**values),), depth=1, grid_size=8)  # pyright: ignore
    losses = dataclasses.replace(
        base.losses, representation_weight=weight, representation=settings, entropy_weight=entropy
    )
    return TokenizerTask(dataclasses.replace(base, losses=losses))


def prepared(monkeypatch: pytest.MonkeyPatch, ours: TokenizerTask, trains: tuple[str, ...]) -> TokenizerTask:
    monkeypatch.setattr(pretrained, "load", lambda name: Embedder())
    phase = Phase(name="all", steps=1, trains=trains)  # pyright: ignore[reportArgumentType]
    ours.prepare([phase], torch.device("cpu"))
    ours.start_phase(phase)
    return ours.train()


def batch(captions: tuple[str | None, ...] = (None,) * 3) -> Batch:
    torch.manual_seed(1)
    unused = {"labels": [None] * 3, "paths": [""] * 3}
    return Batch(
        captions=list(captions),
        images=torch.rand(3, 3, 64, 64) * 2 - 1,
        words=Regions.empty(),
        faces=Regions.empty(with_landmarks=True),
        **unused,
    )


def test_gradient_reaches_only_the_supervised_branch_and_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = prepared(monkeypatch, task(), ("encoder", "quantizer", "decoder"))
    terms = ours.losses(batch(), "tokenizer", step=0)
    assert 0 < terms["representation"].item() < 2 * math.log(3)
    terms["representation"].backward()
    with_gradient = {name for name, p in ours.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(name.startswith("heads.0.") for name in with_gradient)
    assert "tokenizer.encoder.branches.1.adapter.positions.table" in with_gradient
    assert not any(name.startswith("tokenizer.encoder.branches.0.") for name in with_gradient)
    assert not any(name.startswith("tokenizer.decoder.") for name in with_gradient)


def test_caption_target_uses_captioned_pictures_only(needs, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = needs("text_encoder/minilm")
    ours = task(network="text_encoder/minilm", dim=encoder.embed_dim)
    monkeypatch.setattr(pretrained, "load", lambda name: encoder)
    phase = Phase(name="all", steps=1)
    ours.prepare([phase], torch.device("cpu"))
    ours.start_phase(phase)
    ours.train()
    captioned = batch(("a dog", None, "a red sign"))
    loss = ours.losses(captioned, "tokenizer", step=0)["representation"]
    assert ours.after_step()["representation_pictures_0"] == 2
    with torch.no_grad():  # the same loss computed from its parts: two pictures, two captions
        encoding = ours.tokenizer.encode(captioned.images)
        predicted = ours.heads[0](ours.tokenizer.split(encoding.latents)[1], encoding.grid_size)[[0, 2]]
        wanted = encoder.embed_text(["a dog", "a red sign"])
    assert loss.item() == pytest.approx(representation_loss(predicted, wanted, RepresentationConfig()).item(), abs=1e-5)
    ours.losses(batch(), "tokenizer", step=1)
    ours.losses(batch(("a dog", "a cat", "the sea")), "tokenizer", step=1)
    assert ours.after_step()["representation_pictures_0"] == 1.5  # mean over two passes


def test_code_losses_are_absent_if_only_the_decoder_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = prepared(monkeypatch, task(entropy=0.03), ("decoder",))
    assert not {"representation", "entropy", "disentangle"} & ours.losses(batch(), "tokenizer", step=0).keys()


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("insighttok-debug", {"representation_weight": 0.5}, "representation_weight is set, but .*targets is empty"),
        ("insighttok-debug", {"entropy_weight": 0.03}, "only a codebook that the gradient trains"),
        ("insighttok-debug", {"disentangle_weight": 0.1}, "only a factorized quantizer of two codebooks"),
    ],
)
def test_rejects_weights_of_unavailable_losses(preset: str, changes: dict[str, float], message: str) -> None:
    base = presets.get(preset)
    ours = TokenizerTask(dataclasses.replace(base, losses=dataclasses.replace(base.losses, **changes)))
    with pytest.raises(ConfigError, match=message):
        ours.prepare([Phase(name="all", steps=1)], torch.device("cpu"))


def test_heads_are_trained_with_the_tokenizer_but_not_part_of_it() -> None:
    ours = task()
    heads = {id(p) for p in ours.heads.parameters()}
    assert heads
    assert heads <= {id(p) for p in ours.parameters_of("tokenizer")}
    assert not heads & {id(p) for p in ours.tokenizer.parameters()}
    assert any(name.startswith("heads.") for name in ours.state_dict())  # needed for resuming
    assert not any("head" in name for name in ours.model.weights())


def test_rejects_unsuitable_representation_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is for branch 2, counted from 0, and the tokenizer has 2"):
        task(branch=2)
    with pytest.raises(ConfigError, match="8 heads must divide dim"):
        task(dim=33)
    with pytest.raises(ConfigError, match="vision/stub embeds in 32 channels, not 64"):
        prepared(monkeypatch, task(dim=64), ("encoder",))


def test_efficientnet_can_be_a_target(needs) -> None:
    network = needs("vision/efficientnet_lite0")
    assert network.embed(torch.zeros(1, 3, 32, 32)).shape == (1, network.embed_dim)
