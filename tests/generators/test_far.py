"""FAR: cached logits equal uncached, later codes do not leak, and samples follow the model's probabilities."""

import dataclasses
import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from imtok import presets
from imtok.config import ConfigError
from imtok.generators.far import FAR, FARConfig
from imtok.generators.heads import HeadKind
from imtok.generators.sampling import SamplingConfig

SIZES = {1: (7,), 2: (7, 5), 3: (7, 5, 4)}
SMALL = FARConfig(
    codebook_sizes=(7, 5), token_shape=(2, 3), num_classes=3, dim=32, depth=2, num_heads=2, head_depth=2, dropout=0.0
)


def small(k: int = 2, head: HeadKind = "factorized", **changes: object) -> FAR:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, codebook_sizes=SIZES[k], head=head, **changes)  # pyright: ignore[reportArgumentType]
    model = FAR(config).eval()
    for name, parameter in model.named_parameters():
        if "classifiers" in name:  # initialized to zero, they would hide every error
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def some_codes(model: FAR, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(size, (batch, model.tokens), generator=generator) for size in model.codebook_sizes]
    return torch.stack(parts, dim=2)


HEADS: list[HeadKind] = ["factorized", "linear", "mlp"]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_cached_logits_equal_uncached(k: int, head: HeadKind, assert_steps_agree) -> None:
    model = small(k, head)
    assert_steps_agree(model, some_codes(model), ["0", None])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_cached_guided_logits_use_each_codebooks_own_scale(k: int, head: HeadKind, assert_guided_steps_agree) -> None:
    assert_guided_steps_agree(small(k, head), ["0", "1"])


def test_cached_logits_equal_uncached_for_1d_tokens(assert_steps_agree) -> None:
    model = small(2, token_shape=(6,))
    assert_steps_agree(model, some_codes(model), ["0", None])


@pytest.mark.parametrize("head", HEADS)
def test_bf16_logits_are_close_to_fp32(head: HeadKind, assert_bf16_is_near) -> None:
    model = small(2, head)
    assert_bf16_is_near(model, some_codes(model), ["0", None])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_logits_do_not_depend_on_later_codes(head: HeadKind) -> None:
    model = small(3, head)
    codes = some_codes(model)
    before = model(codes, ["0", "1"])
    for token, codebook in itertools.product(range(model.tokens), range(3)):
        changed = codes.clone()
        changed[:, token, codebook] = (changed[:, token, codebook] + 1) % model.codebook_sizes[codebook]
        after = model(changed, ["0", "1"])
        for index in range(3):
            known_here = head == "factorized" and index > codebook
            first = token if known_here else token + 1
            assert torch.equal(before[index][:, :first], after[index][:, :first])
            if first < model.tokens:
                assert not torch.equal(before[index][:, first], after[index][:, first])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_likelihood_matches_enumeration_of_all_pictures(head: HeadKind, enumerate_pictures) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, codebook_sizes=(3, 2), token_shape=(1, 3), head=head)
    model = FAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pictures, probabilities = enumerate_pictures(model, "1")
    assert len(pictures) == 6**3
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert probabilities.max() > 2 * probabilities.min()
    likelihood = model.log_likelihood(pictures, ["1"] * len(pictures)).sum((1, 2)).exp().double()
    assert torch.allclose(likelihood, probabilities, rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_sample_frequencies_match_the_likelihood(head: HeadKind) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, codebook_sizes=(3, 2), token_shape=(1, 2), head=head)
    model = FAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    sampled = model.sample(["1"] * 8000, list(range(8000)))
    tokens = list(itertools.product(range(3), range(2)))
    pictures = torch.tensor(list(itertools.product(tokens, repeat=2)))
    expected = model.log_likelihood(pictures, ["1"] * len(pictures)).sum((1, 2)).exp().double()
    counts = (sampled[:, None] == pictures[None]).all(3).all(2).sum(0)
    assert counts.sum() == 8000
    assert chisquare(counts.numpy(), (expected / expected.sum() * 8000).numpy()).pvalue > 1e-3


@torch.no_grad()
def test_samples_and_logits_do_not_depend_on_the_batch() -> None:
    model = small(2)
    settings = SamplingConfig(guidance_scale=(2.0,), temperature=0.9, top_k=5, top_p=0.95)
    together = model.sample(["0", "1", "2", None], [3, 4, 5, 6], settings)
    alone = [
        model.sample([name], [seed], settings) for name, seed in zip(["0", "1", "2", None], range(3, 7), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, model.sample(["0", "1", "2", None], [13, 14, 15, 16], settings))
    logits = model(together, ["0", "1", "2", None])
    for row, name in enumerate(["0", "1", "2", None]):
        single = model(together[row : row + 1], [name])
        assert all(torch.allclose(one[0], many[row], atol=1e-4) for one, many in zip(single, logits, strict=True))


@torch.no_grad()
def test_guidance_of_one_is_neutral_and_more_favours_the_class() -> None:
    model, seeds = small(2), list(range(400))
    plain = model.sample(["1"] * 400, seeds)
    assert torch.equal(plain, model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(1.0, 1.0))))
    # A scale that differs from 1 only within rounding still runs the guided path itself.
    almost = model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(1.0, 1 + 1e-12)))
    assert (almost == plain).float().mean() > 0.999
    strong = model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(4.0,)))

    def preference(codes: torch.Tensor) -> float:
        """Return the mean log-likelihood ratio of the codes with and without the class."""
        ratio = model.log_likelihood(codes, ["1"] * len(codes)) - model.log_likelihood(codes, [None] * len(codes))
        return ratio.sum((1, 2)).mean().item()

    assert preference(strong) > preference(plain)


@pytest.mark.parametrize(
    ("name", "shape", "millions"), [("far-b", (1024, 24, 16, 3), 415), ("far-l", (1280, 36, 20, 4), 898)]
)
def test_presets_have_the_shapes_and_parameter_counts_of_the_paper(
    name: str, shape: tuple[int, ...], millions: float
) -> None:
    config = presets.get_generator(name).generator
    assert isinstance(config, FARConfig)
    assert (config.dim, config.depth, config.num_heads, config.head_depth) == shape
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in FAR(config).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_initial_predictions_are_uniform() -> None:
    model = FAR(SMALL).eval()
    codes = some_codes(model)
    expected = -sum(math.log(size) for size in SMALL.codebook_sizes) * model.tokens
    assert model.log_likelihood(codes, ["0", "1"]).sum((1, 2)).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_classes_are_dropped_only_in_training() -> None:
    model = small(1, condition_dropout=0.5)
    embedded = model.condition(["1"] * 8)
    assert torch.equal(embedded, embedded[:1].expand_as(embedded))
    torch.manual_seed(0)
    rows = model.train().condition(["1"] * 400)[:, 0]
    dropped = (rows == model.class_embedding.weight[3]).all(1)
    assert ((rows == model.class_embedding.weight[1]).all(1) ^ dropped).all()
    assert 0.4 < dropped.float().mean() < 0.6


def test_rejects_unknown_classes_and_invalid_configs() -> None:
    named = small(1, classes=("cat", "dog", "sign"))
    assert [named.class_embedding.index(name) for name in ("dog", "2", None)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="no class is called 'cow'; there are 3: cat, dog, sign"):
        named.begin(["cow"])
    with pytest.raises(ConfigError, match="no class is called '3'"):
        named.begin(["3"])
    numbered = small(1, classes=("207", "1", "360"))
    assert numbered.class_embedding.index("1") == 1
    with pytest.raises(ConfigError, match="no class is called '0'; there are 3: 207, 1, 360"):
        numbered.begin(["0"])
    for changes, message in (
        ({"codebook_sizes": ()}, "one positive size or more"),
        ({"num_heads": 3}, "3 heads cannot share 32 channels"),
        ({"classes": ("a",)}, "1 classes are named, num_classes is 3"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"dim": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("head", ["mlp", "factorized"])
def test_sampling_in_inference_mode_does_not_affect_later_sampling(head: HeadKind) -> None:
    model = small(2, head)
    with torch.inference_mode():
        inside = model.sample(["0", "1"], [1, 2])
    assert torch.equal(model.sample(["0", "1"], [1, 2]), inside)
