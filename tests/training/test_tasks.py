import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from imtok import presets, pretrained
from imtok.config import ConfigError
from imtok.data.loader import Batch
from imtok.data.sample import Face, InMemoryDataset, Sample, TextRegion
from imtok.layers.crops import Regions
from imtok.losses.adversarial import r1_penalty
from imtok.pretrained.networks import FeatureNetwork, FrozenNetwork
from imtok.tokenizers.text import LABELS, TextConditioner, TextConfig
from imtok.training.checks import check_pictures, check_scales, load_networks
from imtok.training.run import Phase
from imtok.training.tasks import TokenizerTask


def batch(size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.rand(size, 3, 64, 64, generator=generator) * 2 - 1,
        words=Regions(torch.tensor([[4.0, 4, 40, 20]] * size), torch.arange(size)),
        faces=Regions.empty(with_landmarks=True),
        captions=[None] * size,
        labels=[None] * size,
        paths=[""] * size,
    )


def task(**losses: float) -> TokenizerTask:
    torch.manual_seed(0)
    config = presets.get("insighttok-debug")
    settings = {"adversarial_weight": 0.0, "adversarial_start": 0, **losses}
    return TokenizerTask(dataclasses.replace(config, losses=dataclasses.replace(config.losses, **settings))).train()


def test_terms_of_weight_zero_are_not_computed_and_load_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def raise_missing(name: str) -> None:
        requested.append(name)
        raise pretrained.MissingWeights(name)

    monkeypatch.setattr(pretrained, "load", raise_missing)
    plain = task()
    plain.prepare([Phase(name="plain", steps=1)], torch.device("cpu"))
    plain.start_phase(Phase(name="plain", steps=1))
    assert set(plain.losses(batch(), "tokenizer", 0)) == {"l1", "commitment"}
    assert requested == []
    with pytest.raises(pretrained.MissingWeights):
        plain.prepare([Phase(name="text", steps=1, weights={"text": 1.0})], torch.device("cpu"))
    assert requested == ["text_features/ppocrv6"]


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        (Phase(name="x", steps=1, trains=("quantizer",)), "trains quantizer, in which the optimizer finds nothing"),
        (Phase(name="x", steps=1, trains=()), "trains no part"),
        (Phase(name="x", steps=1, trains=("decoder",), weights={"l1": 0.0}), "no loss that it weighs trains decoder"),
        (Phase(name="x", steps=1, weights={"l1": 0.0, "commitment": 0.0}), "no loss that it weighs trains encoder"),
    ],
)
def test_rejects_a_phase_in_which_nothing_can_train(phase: Phase, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"phase x: .*{reason}"):
        task().prepare([Phase(name="first", steps=1), phase], torch.device("cpu"))


def test_adversarial_loss_before_its_start_trains_nothing() -> None:
    late = task(adversarial_start=100)
    alone = Phase(name="x", steps=1, trains=("decoder",), weights={"l1": 0.0, "adversarial": 0.5})
    with pytest.raises(ConfigError, match="phase x: no loss that it weighs trains decoder"):
        late.prepare([alone], torch.device("cpu"))
    late.prepare([Phase(name="first", steps=100), alone], torch.device("cpu"))


def gradients(of: TokenizerTask, player: str) -> list[Tensor | None]:
    return [p.grad for p in of.parameters_of(player)]


def test_each_player_has_gradients_of_its_own_losses_only() -> None:
    both = task(adversarial_weight=0.5)
    both.start_phase(Phase(name="all", steps=1))
    torch.stack(list(both.losses(batch(), "tokenizer", 0).values())).sum().backward()
    assert all(g is None for g in gradients(both, "discriminator"))
    assert all(g is not None for g in gradients(both, "tokenizer"))
    before = [g.clone() for g in gradients(both, "tokenizer") if g is not None]
    torch.stack(list(both.losses(batch(), "discriminator", 0).values())).sum().backward()
    assert all(g is not None for g in gradients(both, "discriminator"))
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(both, "tokenizer"), strict=True) if b is not None)


def test_discriminator_is_inactive_before_its_start() -> None:
    late = task(adversarial_weight=0.5, discriminator_start=10)
    late.start_phase(Phase(name="all", steps=20))
    assert "adversarial" not in late.losses(batch(), "tokenizer", 9)
    assert late.losses(batch(), "discriminator", 9) == {}
    assert "adversarial" in late.losses(batch(), "tokenizer", 10)
    assert set(late.losses(batch(), "discriminator", 10)) == {"discriminator", "lecam"}


def test_discriminator_may_start_before_the_adversarial_loss() -> None:
    early = task(adversarial_weight=0.5, discriminator_start=2, adversarial_start=5)
    early.start_phase(Phase(name="all", steps=20))
    active = [
        [bool(early.losses(batch(), p, s).keys() & {"adversarial", "discriminator"}) for s in (1, 2, 5)]
        for p in early.players
    ]
    assert active == [[False, False, True], [False, True, True]]


def test_lazy_r1_has_the_same_mean_as_r1_at_every_step() -> None:
    torch.manual_seed(0)
    config = presets.get("textok-debug")
    without_text = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=None))
    lazy = TokenizerTask(without_text).train()
    lazy.start_phase(Phase(name="all", steps=20))
    start, found = without_text.losses.discriminator_start, []
    for step in range(start, start + 8):
        lazy.losses(batch(), "tokenizer", step)
        found.append(lazy.losses(batch(), "discriminator", step).get("r1", torch.zeros(())).item())
    expected = r1_penalty(lazy.discriminator, batch().images).item()
    assert sum(found) / len(found) == pytest.approx(expected, rel=1e-5)
    assert found.count(0) == 6


def test_losses_on_annotations_that_no_picture_has_warn_or_raise(caplog: pytest.LogCaptureFixture) -> None:
    config = presets.get("insighttok-debug")
    word = TextRegion(box=(0.0, 0.0, 9.0, 9.0), text="a")
    sample = Sample(image=b"", path="x", width=9, height=9, words=[word], faces=[], captions=[])
    check_pictures(config, InMemoryDataset([sample]))
    assert [record.getMessage() for record in caplog.records] == [
        "losses: face has a weight, but no picture has faces: it stays 0"
    ]
    caplog.clear()
    check_pictures(
        config, InMemoryDataset([sample, dataclasses.replace(sample, faces=[Face(box=(0.0, 0.0, 9.0, 9.0))])])
    )
    assert not caplog.records
    with pytest.raises(ConfigError, match="text_encoder/minilm reads captions, and no picture has one"):
        check_pictures(presets.get("fqgan-dual-nano"), InMemoryDataset([sample]))


def test_regions_excluded_from_the_losses_count_as_absent(caplog: pytest.LogCaptureFixture) -> None:
    config = presets.get("insighttok-debug")
    word, face = TextRegion(box=(0.0, 0.0, 9.0, 9.0), text="a"), Face(box=(0.0, 0.0, 9.0, 9.0))
    pictures = InMemoryDataset(
        [Sample(image=b"", path="x", width=9, height=9, words=[word], faces=[face], captions=[])]
    )
    check_pictures(dataclasses.replace(config, data=dataclasses.replace(config.data, max_words=0)), pictures)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("losses: text has a weight, but data.max_words or data.drop_regions leaves out all words")
    caplog.clear()
    check_pictures(dataclasses.replace(config, data=dataclasses.replace(config.data, drop_regions=1.0)), pictures)
    assert len(caplog.records) == 2


class AnySize(FeatureNetwork):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


class FixedSize(AnySize):
    input_size = (48, 160)


@pytest.mark.parametrize(
    ("term", "network", "side", "reason"),
    [
        ("text", AnySize(), 64, "text is computed on crops of one size, and x has none of its own"),
        ("face", AnySize(), 64, "face is computed on crops of one size"),
        ("face", FixedSize(), 64, "face aligns faces by their landmarks, and x does not say where these lie"),
        ("face", FrozenNetwork(), 64, "face compares feature maps, and x has none"),
        ("perceptual", FixedSize(), 64, "perceptual is computed on whole pictures, and x on crops of one size"),
        ("ocr", AnySize(), 8, "ocr needs pictures of 16 px or more, these have 8"),
    ],
)
def test_rejects_networks_unsuitable_for_their_loss(
    term: str, network: FrozenNetwork, side: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imtok.pretrained.load", lambda name: network)
    settings = presets.get("insighttok-debug").losses
    text, face = (dataclasses.replace(one, network="x") for one in (settings.text, settings.face))
    settings = dataclasses.replace(settings, text=text, face=face, perceptual_network="x", ocr_network="x")
    alone = {name: float(name == term) for name in settings.weights()}
    with pytest.raises(ConfigError, match=reason):
        load_networks(settings, [Phase(name="all", steps=1, weights=alone)], side)


def test_warns_of_loss_weights_chosen_for_other_features(caplog: pytest.LogCaptureFixture) -> None:
    config = presets.get("insighttok")
    check_scales(presets.get("insighttok-nano"))
    assert not caplog.records
    check_scales(config)
    warnings = [record.getMessage() for record in caplog.records]
    assert ["text_features/ppocrv6" in warnings[0], "face_features/mobilefacenet" in warnings[1]] == [True, True]
    assert "--losses.face.layer-scale energy" in warnings[1]
    caplog.clear()
    face = dataclasses.replace(config.losses.face, network="face_features/arcface")
    check_scales(dataclasses.replace(config, losses=dataclasses.replace(config.losses, face=face)))
    assert len(caplog.records) == 1


def test_region_losses_train_a_tokenizer_of_1d_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """InsightTok's losses on TexTok: their gradient reaches the pixels of the regions and no others."""

    class Colours(FeatureNetwork):
        input_size = (16, 16)

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("template", torch.tensor([(5.0, 5), (11, 5), (8, 8), (6, 11), (10, 11)]))

        def forward(self, images: Tensor) -> list[Tensor]:
            return [images, images.square()]

    monkeypatch.setattr(pretrained, "load", lambda name: Colours().freeze())
    config = presets.get("textok-debug")
    losses = dataclasses.replace(config.losses, l2_weight=0.0, kl_weight=0.0, adversarial_weight=0.0)
    losses = dataclasses.replace(losses, text_weight=1.0, face_weight=1.0)
    without_kl = dataclasses.replace(config.tokenizer.quantizer, kl=False)
    tokenizer = dataclasses.replace(config.tokenizer, text=None, quantizer=without_kl)
    tiny = TokenizerTask(dataclasses.replace(config, losses=losses, tokenizer=tokenizer)).train()
    phase = Phase(name="all", steps=1)
    tiny.prepare([phase], torch.device("cpu"))
    tiny.start_phase(phase)
    points = torch.tensor([[(40.0, 40), (50, 40), (45, 45), (42, 50), (48, 50)]] * 2)
    faces = Regions(torch.tensor([[36.0, 36, 56, 56]] * 2), torch.arange(2), landmarks=points)
    decoded = []
    decode = tiny.tokenizer.decode
    monkeypatch.setattr(tiny.tokenizer, "decode", lambda *args: decoded.append(decode(*args)) or decoded[-1])
    found = tiny.losses(dataclasses.replace(batch(), faces=faces), "tokenizer", 0)
    assert set(found) == {"text", "face"}
    (gradient,) = torch.autograd.grad(found["text"], decoded[0], retain_graph=True)
    assert gradient[:, :, 4:20, 4:40].abs().sum() > 0
    assert gradient[:, :, 21:].abs().sum() == 0
    for term in found.values():
        (weight,) = torch.autograd.grad(term, tiny.tokenizer.decoder.patches_out.weight, retain_graph=True)
        assert weight.abs().sum() > 0


@pytest.mark.parametrize("known", [True, False])
def test_text_conditions_encoder_and_decoder(known: bool) -> None:
    torch.manual_seed(0)
    config = presets.get("textok-debug")
    text = TextConfig(encoder=LABELS, dim=2, classes=("food", "plate"))
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, text=text))
    conditioned = TokenizerTask(config, TextConditioner(text)).train()
    conditioned.start_phase(Phase(name="all", steps=1))
    labels = ["food", "plate" if known else None]
    terms = conditioned.losses(dataclasses.replace(batch(), labels=labels), "tokenizer", 0)
    torch.stack(list(terms.values())).sum().backward()
    for part in (conditioned.tokenizer.encoder, conditioned.tokenizer.decoder):
        food, plate = part.text_in.weight.grad.abs().sum(0)
        assert food > 0
        assert (plate > 0) == known


def test_phase_freezes_parts_that_it_does_not_train() -> None:
    frozen = task()
    frozen.start_phase(Phase(name="decoder", steps=1, trains=("decoder",)))
    codebook = frozen.tokenizer.state_dict()["quantizer.codebook"].clone()
    terms = frozen.losses(batch(), "tokenizer", 0)
    torch.stack(list(terms.values())).sum().backward()
    trained = {name.split(".")[0] for name, p in frozen.tokenizer.named_parameters() if p.grad is not None}
    assert trained == {"decoder"}
    frozen.after_step()
    assert torch.equal(frozen.tokenizer.state_dict()["quantizer.codebook"], codebook)


COMPILED = """
import sys, torch
from imtok import presets
from imtok.generators.catalog import build as build_generator
from imtok.tokenizers import build

torch.manual_seed(0)
name = sys.argv[1]
config = presets.get_run(name)


def make():
    if hasattr(config, "generator"):
        return build_generator(config.generator)
    return build(config.tokenizer)


def drawn(model):
    if name == "dit-debug":
        torch.manual_seed(1)
        return sum(model.losses(torch.randn(2, model.tokens, model.config.channels), [None, None]).values())
    if name == "insighttok-debug":
        return model.decode(model.encode(images).latents)
    if name == "textok-debug":
        return model.decode(model.encode(images, text).latents, text)
    codes = torch.zeros(2, model.tokens, len(model.codebook_sizes), dtype=torch.long)
    return torch.cat([logits.flatten() for logits in model(codes, [None, None])])


images = torch.rand(2, 3, 64, 64) * 2 - 1
if name == "textok-debug":
    text = torch.randn(2, 5, config.tokenizer.text.dim), torch.ones(2, 5, dtype=torch.bool)
plain, compiled = make(), make()
for parameter in plain.parameters():
    if not parameter.any():  # what begins at zero would hide everything
        torch.nn.init.normal_(parameter, std=0.02)
compiled.load_weights(plain.weights())
compiled.compile_parts()
for model in (plain, compiled):
    model.eval()
    model.found = drawn(model)
    model.found.square().mean().backward()
torch.testing.assert_close(plain.found, compiled.found, rtol=1e-3, atol=1e-4)
for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)
assert any(module._compiled_call_impl is not None for module in compiled.modules())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["insighttok-debug", "textok-debug", "far-debug", "insightar-debug", "dit-debug"])
def test_compiled_parts_equal_uncompiled_ones(name: str) -> None:
    # In a separate process: the shape checks that the tests install in the package cannot be traced.
    finished = subprocess.run([sys.executable, "-c", COMPILED, name], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.gpu
def test_a_step_on_the_gpu() -> None:
    from imtok.layers.collective import best_device

    device = best_device()
    assert device.type in ("cuda", "mps")
    moved = task(adversarial_weight=0.5).to(device)
    moved.start_phase(Phase(name="all", steps=1))
    for player in moved.players:
        terms = moved.losses(batch().to(device), player, 0)
        assert all(torch.isfinite(value) for value in terms.values())
        torch.stack(list(terms.values())).sum().backward()
    moved.after_step()


def test_rejects_a_kl_bottleneck_without_kl_loss() -> None:
    config = presets.get("textok-debug")
    task = TokenizerTask(dataclasses.replace(config, losses=dataclasses.replace(config.losses, kl_weight=0.0)))
    with pytest.raises(ConfigError, match=r"nothing keeps these wide; set losses\.kl_weight"):
        task.prepare([Phase(name="all", steps=1)], torch.device("cpu"))
    task.prepare([Phase(name="decoder", steps=1, trains=("decoder",))], torch.device("cpu"))
    task.prepare([Phase(name="all", steps=1, weights={"kl": 1e-6})], torch.device("cpu"))
