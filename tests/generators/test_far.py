"""FAR: cached equals uncached, nothing leaks from later codes, and drawing follows the model's own probabilities."""

import dataclasses
import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

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
        if "classifiers" in name:  # they start at zero, and would hide every mistake
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def some_codes(model: FAR, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(size, (batch, model.tokens), generator=generator) for size in model.codebook_sizes]
    return torch.stack(parts, dim=2)


HEADS: list[HeadKind] = ["factorized", "linear", "mlp"]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_step_by_step_gives_the_logits_of_all_at_once(k: int, head: HeadKind, assert_steps_agree) -> None:
    model = small(k, head)
    assert_steps_agree(model, some_codes(model), ["0", None])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_guided_too_and_each_codebook_by_its_own_scale(k: int, head: HeadKind, assert_guided_steps_agree) -> None:
    assert_guided_steps_agree(small(k, head), ["0", "1"])


def test_tokens_may_lie_on_no_grid(assert_steps_agree) -> None:
    model = small(2, token_shape=(6,))
    assert_steps_agree(model, some_codes(model), ["0", None])


@pytest.mark.parametrize("head", HEADS)
def test_weights_in_bf16_say_almost_the_same(head: HeadKind, assert_bf16_is_near) -> None:
    model = small(2, head)
    assert_bf16_is_near(model, some_codes(model), ["0", None])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_later_code_changes_no_earlier_logit(head: HeadKind) -> None:
    model = small(3, head)
    codes = some_codes(model)
    before = model(codes, ["0", "1"])
    for token, codebook in itertools.product(range(model.tokens), range(3)):
        other = codes.clone()
        other[:, token, codebook] = (other[:, token, codebook] + 1) % model.codebook_sizes[codebook]
        after = model(other, ["0", "1"])
        for index in range(3):
            known_here = head == "factorized" and index > codebook
            first = token if known_here else token + 1
            assert torch.equal(before[index][:, :first], after[index][:, :first])
            if first < model.tokens:
                assert not torch.equal(before[index][:, first], after[index][:, first])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_the_likelihood_is_that_of_an_enumeration_of_all_pictures(head: HeadKind, enumerate_pictures) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, codebook_sizes=(3, 2), token_shape=(1, 3), head=head)
    model = FAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    every, shares = enumerate_pictures(model, "1")
    assert len(every) == 6**3
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert shares.max() > 2 * shares.min()
    likelihood = model.log_likelihood(every, ["1"] * len(every)).sum((1, 2)).exp().double()
    assert torch.allclose(likelihood, shares, rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_pictures_are_drawn_as_often_as_they_are_likely(head: HeadKind) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, codebook_sizes=(3, 2), token_shape=(1, 2), head=head)
    model = FAR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    drawn = model.sample(["1"] * 8000, list(range(8000)))
    places = list(itertools.product(range(3), range(2)))
    every = torch.tensor(list(itertools.product(places, repeat=2)))
    expected = model.log_likelihood(every, ["1"] * len(every)).sum((1, 2)).exp().double()
    counts = (drawn[:, None] == every[None]).all(3).all(2).sum(0)
    assert counts.sum() == 8000
    assert chisquare(counts.numpy(), (expected / expected.sum() * 8000).numpy()).pvalue > 1e-3


@torch.no_grad()
def test_a_picture_is_the_same_alone_and_in_a_batch() -> None:
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
        of_it = model(together[row : row + 1], [name])
        assert all(torch.allclose(one[0], many[row], atol=1e-4) for one, many in zip(of_it, logits, strict=True))


@torch.no_grad()
def test_guidance_of_one_is_none_and_more_is_more() -> None:
    model, seeds = small(2), list(range(400))
    plain = model.sample(["1"] * 400, seeds)
    assert torch.equal(plain, model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(1.0, 1.0))))
    # With the scale reaching 1 only in the formula, the guided path itself is run.
    almost = model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(1.0, 1 + 1e-12)))
    assert (almost == plain).float().mean() > 0.999
    strong = model.sample(["1"] * 400, seeds, SamplingConfig(guidance_scale=(4.0,)))

    def preference(codes: torch.Tensor) -> float:
        """How much likelier the codes are under the class than without."""
        ratio = model.log_likelihood(codes, ["1"] * len(codes)) - model.log_likelihood(codes, [None] * len(codes))
        return ratio.sum((1, 2)).mean().item()

    assert preference(strong) > preference(plain)


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "head_depth", "millions"), [(1024, 24, 16, 3, 415), (1280, 36, 20, 4, 898)]
)
def test_the_published_sizes(dim: int, depth: int, heads: int, head_depth: int, millions: float) -> None:
    config = FARConfig(dim=dim, depth=depth, num_heads=heads, head_depth=head_depth)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in FAR(config).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_fresh_model_knows_nothing() -> None:
    model = FAR(SMALL).eval()
    codes = some_codes(model)
    expected = -sum(math.log(size) for size in SMALL.codebook_sizes) * model.tokens
    assert model.log_likelihood(codes, ["0", "1"]).sum((1, 2)).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_classes_are_withheld_in_training_alone() -> None:
    model = small(1, condition_dropout=0.5)
    told = model.condition(["1"] * 8)
    assert torch.equal(told, told[:1].expand_as(told))
    torch.manual_seed(0)
    rows = model.train().condition(["1"] * 400)[:, 0]
    withheld = (rows == model.class_embedding.weight[3]).all(1)
    assert ((rows == model.class_embedding.weight[1]).all(1) ^ withheld).all()
    assert 0.4 < withheld.float().mean() < 0.6


def test_unknown_classes_and_senseless_configs_are_refused() -> None:
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
def test_drawing_in_inference_mode_leaves_nothing_behind(head: HeadKind) -> None:
    model = small(2, head)
    with torch.inference_mode():
        inside = model.sample(["0", "1"], [1, 2])
    assert torch.equal(model.sample(["0", "1"], [1, 2]), inside)
