"""DiT: initial output zero, published sizes, and which inputs change the output (padding and the batch do not)."""

import copy
import dataclasses

import pytest
import torch

from imtok import presets
from imtok.config import ConfigError, from_dict, to_dict
from imtok.generators.diffusion import DiffusionConfig, DiffusionSamplingConfig, gaussian_noise
from imtok.generators.dit import DiT, DiTConfig
from imtok.layers.positions import sincos_positions
from imtok.presets.dit import SIZES
from imtok.tokenizers.base import Text
from imtok.tokenizers.text import LABELS, TextConditioner, TextConfig

SMALL = DiTConfig(channels=3, token_shape=(5,), num_classes=4, dim=32, depth=2, num_heads=4)
WITH_TEXT = dataclasses.replace(SMALL, text=TextConfig(encoder="any", dim=12))
GUIDED = DiffusionSamplingConfig(num_inference_steps=6, guidance_scale=3.0, guidance_schedule="power_cosine")


class RandomTextConditioner(TextConditioner):
    """A text encoder with a random vector for each word and an adjustable amount of padding."""

    def __init__(self, config: TextConfig, padding: int = 0, junk: float = 0.0) -> None:
        super().__init__(config)
        self.padding, self.junk = padding, junk

    def check(self, caption) -> None:
        pass

    def encode(self, texts) -> Text:
        tokens = [0 if text is None else len(text.split()) for text in texts]
        states = torch.full((len(tokens), max([1, *tokens]) + self.padding, self.config.dim), self.junk)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, (caption, count) in enumerate(zip(texts, tokens, strict=True)):
            for position in range(count):
                generator = torch.Generator().manual_seed(sum(map(ord, caption.split()[position])))
                states[row, position] = torch.randn(self.config.dim, generator=generator)
            mask[row, :count] = True
        return states, mask


def small(config: DiTConfig = SMALL, randomize: bool = True) -> DiT:
    """Return a small model; with `randomize`, parameters that are initialized to zero are random instead."""
    torch.manual_seed(0)
    model = DiT(config).eval()
    if config.text is not None:
        model.text_conditioner = RandomTextConditioner(config.text)
    for parameter in model.parameters():
        if randomize and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, 3, generator=torch.Generator().manual_seed(1))


TIMES = torch.tensor([10.0, 800.0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "conditions"), [(SMALL, ["0", None]), (WITH_TEXT, ["a red sign", None])], ids=["class", "text"]
)
def test_initial_output_is_zero_and_blocks_are_identities(config: DiTConfig, conditions: list) -> None:
    model = small(config, randomize=False)
    embedded = model.embed_conditions(conditions)
    assert not model(latents(), TIMES, conditions).any()
    x, vector = torch.randn(2, 5, 32), torch.randn(2, 32)
    for block in model.layers:
        assert torch.equal(block(x, vector, embedded if isinstance(embedded, tuple) else None), x)
    losses = model.losses(torch.randn(64, 5, 3), ["0"] * 64 if config.text is None else ["a sign"] * 64)
    assert losses["diffusion"].item() == pytest.approx(1, abs=0.15)  # v of data and noise of variance 1 has variance 1


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_parameter_counts_match_the_papers(size: str, millions: float) -> None:
    """DiT, Table 1, and TexTok, Table 2."""
    with torch.device("meta"):
        model = DiT(DiTConfig(**SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, WITH_TEXT], ids=["class", "text"])
def test_output_depends_on_time_condition_and_token_position(config: DiTConfig) -> None:
    model = small(config)
    one, other = ("0", "1") if config.text is None else ("a red sign", "a dog")
    plain = model(latents(), TIMES, [one, one])
    assert not torch.allclose(plain[0], model(latents(), TIMES, [other, one])[0], atol=1e-3)
    assert torch.equal(plain[1], model(latents(), TIMES, [other, one])[1])
    assert not torch.allclose(plain[0], model(latents(), TIMES, [None, one])[0], atol=1e-3)
    assert not torch.allclose(plain, model(latents(), TIMES + 1, [one, one]), atol=1e-4)
    permuted = model(latents().flip(1), TIMES, [one, one]).flip(1)
    assert not torch.allclose(plain, permuted, atol=1e-3)  # tokens have positions


@torch.no_grad()
def test_text_padding_has_no_influence() -> None:
    model, texts = small(WITH_TEXT), ["a red sign", "dog"]
    plain = model(latents(), TIMES, texts)
    assert WITH_TEXT.text is not None
    for padding, junk in ((0, 1e4), (7, 0.0), (7, 1e4)):
        model.text_conditioner = RandomTextConditioner(WITH_TEXT.text, padding, junk)
        assert torch.allclose(plain, model(latents(), TIMES, texts), atol=1e-5)
    unconditional = model(latents(), TIMES, [None, None])
    for block in model.layers:
        del block.cross_attention
        block.forward = lambda x, vector, context, forward=block.forward: forward(x, vector, None)
    assert torch.allclose(unconditional, model(latents(), TIMES, [None, None]), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "conditions"),
    [(SMALL, ["0", "1", "2", None]), (WITH_TEXT, ["a red sign", "dog", "a house that is on fire", None])],
    ids=["class", "text"],
)
@pytest.mark.parametrize("diffusion", [DiffusionConfig(), DiffusionConfig(path="straight", prediction="velocity")])
def test_samples_do_not_depend_on_the_batch(config: DiTConfig, conditions: list, diffusion: DiffusionConfig) -> None:
    model = small(dataclasses.replace(config, diffusion=diffusion))
    progress: list[float] = []
    together = model.sample(conditions, [3, 4, 5, 6], GUIDED, progress.append)
    assert together.shape == (4, 5, 3)
    assert progress == [1 / 6] * 6
    for row, condition in enumerate(conditions):
        alone = model.sample([condition], [3 + row], GUIDED)
        assert torch.allclose(alone[0], together[row], atol=1e-4)
    assert not torch.allclose(together, model.sample(conditions, [13, 14, 15, 16], GUIDED), atol=1e-2)
    reordered = model.sample(conditions[::-1], [6, 5, 4, 3], GUIDED)
    assert torch.allclose(reordered.flip(0), together, atol=1e-4)


def test_guidance_of_one_is_neutral_and_stronger_guidance_is_not() -> None:
    model, conditions, seeds = small(), ["1"] * 3, [1, 2, 3]
    plain = model.sample(conditions, seeds, DiffusionSamplingConfig(num_inference_steps=6))
    almost = dataclasses.replace(GUIDED, guidance_scale=1 + 1e-9)  # runs the guided path itself
    assert torch.allclose(model.sample(conditions, seeds, almost), plain, atol=1e-5)
    zero = dataclasses.replace(GUIDED, guidance_scale=0.0, guidance_schedule="constant")
    unconditional = model.sample([None] * 3, seeds, DiffusionSamplingConfig(num_inference_steps=6))
    assert torch.allclose(model.sample(conditions, seeds, zero), unconditional, atol=1e-5)
    strong = model.sample(conditions, seeds, GUIDED)
    assert not torch.allclose(strong, plain, atol=1e-2)
    assert all(not torch.allclose(strong[..., i], plain[..., i], atol=1e-2) for i in range(3))  # in all channels


def test_latents_are_normalized_to_mean_0_and_deviation_1() -> None:
    measured = dataclasses.replace(SMALL, latent_mean=(5.0, -3.0, 0.0), latent_std=(2.0, 0.5, 1.0))
    plain, shifted = small(), small(measured)
    raw = latents() * shifted.std + shifted.mean
    assert torch.allclose(shifted.normalize(raw), latents(), atol=1e-6)
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = plain.losses(latents(), ["0", "1"])["diffusion"]
        torch.manual_seed(seed)
        assert torch.allclose(shifted.losses(raw, ["0", "1"])["diffusion"], expected)
    sampled = plain.sample(["0", "1"], [1, 2], GUIDED)
    assert torch.allclose(shifted.sample(["0", "1"], [1, 2], GUIDED), sampled * shifted.std + shifted.mean, atol=1e-5)
    assert plain.weights().keys() == shifted.weights().keys()  # mean and deviation are stored in the config only


def test_scores_are_deterministic_and_do_not_depend_on_the_batch() -> None:
    model, clean = small(), latents(4)
    whole = model.scores(clean, ["0", "1", "2", None], range(4))
    assert all(
        torch.equal(value, model.scores(clean, ["0", "1", "2", None], range(4))[name]) for name, value in whole.items()
    )
    last = model.scores(clean[2:], ["2", None], range(2, 4))
    assert all(torch.allclose(value[2:], last[name], atol=1e-5) for name, value in whole.items())
    times = [value for name, value in whole.items() if name != "diffusion"]
    assert torch.allclose(whole["diffusion"], torch.stack(times).mean(0))
    by_hand = model.diffusion.add_noise(model.normalize(clean), gaussian_noise(range(4), 5, 3), torch.full((4,), 125.0))
    with torch.no_grad():
        predicted = model(by_hand[0], torch.full((4,), 125.0), ["0", "1", "2", None])
    assert torch.allclose(whole["diffusion_125"], (predicted - by_hand[1]).square().mean((1, 2)))


@pytest.mark.parametrize("config", [SMALL, WITH_TEXT], ids=["class", "text"])
def test_conditions_are_dropped_only_in_training(config: DiTConfig) -> None:
    model = small(dataclasses.replace(config, condition_dropout=0.5))
    condition = "1" if config.text is None else "dog"
    torch.manual_seed(0)

    def dropped() -> torch.Tensor:
        embedded = model.embed_conditions([condition] * 400)
        if isinstance(embedded, tuple):
            return ~embedded[1].any(1)
        assert model.class_embedding is not None
        return (embedded == model.class_embedding.weight[4]).all(1)

    assert not dropped().any()
    model.train()
    assert 0.4 < dropped().float().mean() < 0.6


@pytest.mark.parametrize("config", [SMALL, WITH_TEXT], ids=["class", "text"])
def test_every_weight_gets_a_gradient_unchanged_by_checkpointing(config: DiTConfig) -> None:
    gradients = []
    for recompute in (False, True):
        model = small(dataclasses.replace(config, positions="learned")).train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(3)
        model.losses(latents(), ["0", "1"] if config.text is None else ["a red sign", "dog"])["diffusion"].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient)


@pytest.mark.parametrize(
    "diffusion", [DiffusionConfig(), DiffusionConfig(path="straight", prediction="velocity")], ids=["chain", "flow"]
)
def test_overfits_two_pictures(diffusion: DiffusionConfig) -> None:
    model = small(dataclasses.replace(SMALL, condition_dropout=0.0, diffusion=diffusion), randomize=False).train()
    pictures = torch.stack([torch.ones(5, 3), -torch.ones(5, 3)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        model.losses(pictures.repeat(16, 1, 1), ["0", "1"] * 16)["diffusion"].backward()
        optimizer.step()
    sampled = model.eval().sample(["0", "1", "1"], [1, 2, 3], DiffusionSamplingConfig(num_inference_steps=20))
    assert torch.allclose(sampled.mean((1, 2)), torch.tensor([1.0, -1, -1]), atol=0.2)


def test_sincos_positions_are_all_distinct() -> None:
    for shape in ((7,), (3, 4)):
        found = sincos_positions(shape, 16)
        assert found.shape == (len(found), 16)
        assert (torch.cdist(found, found) + torch.eye(len(found))).min() > 0.3


def test_deepcopy_shares_the_text_conditioner() -> None:
    model = small(WITH_TEXT)
    assert copy.deepcopy(model).text_conditioner is model.text_conditioner


def test_configs_round_trip_through_dicts() -> None:
    config = dataclasses.replace(WITH_TEXT, latent_mean=(0.1, 1 / 3, 1e-9), latent_std=(1.0, 2.0, 3.0))
    assert from_dict(DiTConfig, to_dict(config)) == config
    for name in ("dit-debug", "far-debug"):
        run = presets.get_generator(name)
        assert from_dict(type(run), to_dict(run)) == run


@pytest.mark.parametrize(("config", "conditions"), [(SMALL, ["0", None]), (WITH_TEXT, ["a red sign", None])])
@torch.no_grad()
def test_bf16_outputs_are_close_to_fp32(config: DiTConfig, conditions: list[str | None]) -> None:
    model = small(config)
    times = torch.tensor([998.0, 999.0])  # neither is representable in bf16
    exact, sampled = model(latents(), times, conditions), model.sample(conditions, [1, 2], GUIDED)
    model.cast(torch.bfloat16)
    rounded = model(latents(), times, conditions)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02
    assert (model.sample(conditions, [1, 2], GUIDED) - sampled).norm() / sampled.norm() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiTConfig(dim=100), "100 channels cannot be shared by 16 heads"),
        (lambda: DiTConfig(depth=0), "all sizes must be positive"),
        (lambda: DiTConfig(mlp_ratio=0.0), "mlp_ratio = 0.0 must be positive"),
        (lambda: DiTConfig(latent_mean=(0.0,)), "latent_mean and latent_std are not of 8 channels"),
        (lambda: DiTConfig(classes=("a",)), "1 classes are named, num_classes is 1000"),
        (lambda: DiTConfig(condition_dropout=1.0), r"condition_dropout must be in \[0, 1\)"),
        (
            lambda: DiTConfig(text=TextConfig(encoder=LABELS, dim=1, classes=("a",))),
            "wants an encoder that reads prompts",
        ),
        (
            lambda: dataclasses.replace(presets.get_generator("far-debug"), sampling=DiffusionSamplingConfig()),
            "far-debug: sampling is no SamplingConfig, by which a far draws",
        ),
    ],
)
def test_rejects_invalid_configs(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_rejects_unsupported_spacing_and_unknown_classes() -> None:
    model = small(dataclasses.replace(SMALL, diffusion=DiffusionConfig(path="straight", prediction="velocity")))
    with pytest.raises(ConfigError, match="spacing leading would leave that out"):
        model.sample(["0"], [1], DiffusionSamplingConfig(spacing="leading"))
    with pytest.raises(ConfigError, match="no class is called '4'; there are 4"):
        model.sample(["4"], [1])
    with pytest.raises(ConfigError, match="no class is called 'cow'"):
        model.resolve("cow")
    assert small(WITH_TEXT).resolve("a cow") == "a cow"
