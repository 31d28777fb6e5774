"""InsightAR on a tiny Llama: cached logits equal uncached, padding has no influence, codes use tokenizer vectors."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch

from imtok import presets
from imtok.config import ConfigError
from imtok.generators import catalog
from imtok.generators.heads import HeadKind
from imtok.generators.insightar import InsightAR, InsightARConfig
from imtok.generators.prompts import ByteTokenizer
from imtok.generators.sampling import SamplingConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SMALL = InsightARConfig(
    codebook_sizes=(7, 5),
    codebook_dims=(3, 3),
    token_shape=(2, 2),
    architecture=LLAMA,
    prompt_format="bytes",
    max_prompt_tokens=16,
)
PROMPTS = ["a red sign", None, "STOP"]


def small(head: HeadKind = "mlp", **changes: object) -> InsightAR:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, head=head, **changes)  # pyright: ignore[reportArgumentType]
    model = InsightAR(config, ByteTokenizer(config.max_prompt_tokens)).eval()
    for name, parameter in model.named_parameters():
        if "classifiers" in name:  # initialized to zero, they would hide every error
            torch.nn.init.normal_(parameter, std=0.5)
    for index in range(len(config.codebook_sizes)):
        torch.nn.init.normal_(model.get_buffer(f"codebook_{index}"))
    return model


def some_codes(model: InsightAR, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randint(size, (batch, model.tokens), generator=generator) for size in model.codebook_sizes]
    return torch.stack(parts, dim=2)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("head", ["mlp", "linear", "factorized"])
def test_cached_logits_equal_uncached_with_and_without_guidance(
    k: int, head: HeadKind, assert_steps_agree, assert_guided_steps_agree
) -> None:
    model = small(head, codebook_sizes=(7, 5, 4)[:k], codebook_dims=(3,) * k)
    assert_steps_agree(model, some_codes(model), PROMPTS)
    assert_guided_steps_agree(model, ["a red sign", "STOP"])


@pytest.mark.parametrize("head", ["mlp", "factorized"])
def test_bf16_logits_are_close_to_fp32(head: HeadKind, assert_bf16_is_near) -> None:
    model = small(head, code_similarity=True, grid_embedding=True)
    assert_bf16_is_near(model, some_codes(model), PROMPTS)


def test_cached_logits_equal_uncached_with_grid_embedding(assert_steps_agree, assert_guided_steps_agree) -> None:
    model = small(grid_embedding=True, token_shape=(2, 3))
    assert_steps_agree(model, some_codes(model), PROMPTS)
    assert_guided_steps_agree(model, ["a red sign", "STOP"])
    rows, columns = model.grid
    assert torch.equal(model.position_embeddings(0, 6), (rows[:, None] + columns).flatten(0, 1))
    assert torch.equal(model.position_embeddings(4, 5), (rows[1] + columns[1])[None])


@pytest.mark.parametrize("head", ["linear", "factorized"])
def test_equal_code_vectors_have_equal_shared_logits(
    head: HeadKind, assert_steps_agree, assert_guided_steps_agree
) -> None:
    model = small(head, code_similarity=True)
    assert_steps_agree(model, some_codes(model), PROMPTS)
    assert_guided_steps_agree(model, ["a red sign", "STOP"])
    with torch.no_grad():
        model.codebook_0[3] = model.codebook_0[2]
        shared = model.shared_logits(torch.randn(4, 32), 0)
    assert torch.equal(shared[:, 3], shared[:, 2])
    assert not torch.allclose(shared[:, 1], shared[:, 2])


@torch.no_grad()
def test_samples_and_logits_do_not_depend_on_the_batch() -> None:
    model = small()
    codes = some_codes(model)
    together = model(codes, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = model(codes[row : row + 1], [prompt])
        assert all(torch.allclose(a[0], b[row], atol=1e-5) for a, b in zip(alone, together, strict=True))
    sampled = model.sample(PROMPTS, [3, 4, 5], SamplingConfig(guidance_scale=(3.0,)))
    pairs = zip(PROMPTS, (3, 4, 5), strict=True)
    alone = [model.sample([prompt], [seed], SamplingConfig(guidance_scale=(3.0,))) for prompt, seed in pairs]
    assert torch.equal(sampled, torch.cat(alone))


@torch.no_grad()
def test_likelihood_matches_enumeration_of_all_pictures(enumerate_pictures) -> None:
    model = small("factorized", codebook_sizes=(3, 2), token_shape=(1, 3), code_similarity=True)
    pictures, probabilities = enumerate_pictures(model, "STOP")
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)
    likelihood = model.log_likelihood(pictures, ["STOP"] * len(pictures)).sum((1, 2)).exp().double()
    assert torch.allclose(likelihood, probabilities, rtol=1e-4, atol=0)


@torch.no_grad()
def test_logits_do_not_depend_on_later_codes() -> None:
    model = small("factorized")
    codes = some_codes(model)
    before = model(codes, PROMPTS)
    for token, codebook in itertools.product(range(model.tokens), range(2)):
        changed = codes.clone()
        changed[:, token, codebook] = (changed[:, token, codebook] + 1) % model.codebook_sizes[codebook]
        after = model(changed, PROMPTS)
        for index in range(2):
            first = token if index > codebook else token + 1
            assert torch.equal(before[index][:, :first], after[index][:, :first])
            if first < model.tokens:
                assert not torch.equal(before[index][:, first], after[index][:, first])


def test_adapter_input_is_the_tokenizers_code_vectors() -> None:
    tokenizer = presets.create_tokenizer("fqgan-debug").eval()
    model = small(codebook_sizes=tokenizer.codebook_sizes, codebook_dims=tokenizer.branch_dims)
    model.init_from_tokenizer(tokenizer)
    codes = some_codes(model)
    with torch.no_grad():
        assert torch.allclose(model.adapt(codes, first=1), model.adapter(tokenizer.lookup(codes)), atol=1e-6)


def test_first_stage_does_not_train_the_language_model() -> None:
    model = small().train()
    for name, part in model.named_children():
        part.requires_grad_(name in ("adapter", "head"))
    loss = sum(logits.logsumexp(2).mean() for logits in model(some_codes(model), PROMPTS))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"adapter", "head", "start_of_image"}


def test_prompts_are_truncated_and_in_training_some_are_dropped() -> None:
    model = small(condition_dropout=0.5)
    long = "a sign that says a lot of words"
    with pytest.raises(ConfigError, match=r"32 tokens, the model reads 16; shorten it"):
        model.resolve(long)
    assert model.prompt([long])[1].sum() == 16  # held-out captions are truncated like training captions
    torch.manual_seed(0)
    _, mask = model.train().prompt([long] * 200)
    assert set(mask.sum(1).tolist()) == {1, 16}
    assert 0.4 < (mask.sum(1) == 1).float().mean() < 0.6


@pytest.mark.parametrize("head", ["mlp", "factorized"])
def test_gradient_checkpointing_does_not_change_gradients(head: HeadKind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(head, condition_dropout=0.0).train()
    gradients = []
    calls = Counter[str]()

    def count(part: torch.nn.Module) -> None:
        first = next(layer for layer in part.modules() if isinstance(layer, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *_: calls.update([type(part).__name__]))

    for part in model.stages():
        count(part)
    for on in (False, True):
        calls.clear()
        model.set_grad_checkpointing(on)
        model.zero_grad()
        loss = sum(logits.logsumexp(2).mean() for logits in model(some_codes(model), PROMPTS))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        counts = Counter(type(part).__name__ for part in model.stages())
        assert calls == {name: count * (1 + on) for name, count in counts.items()}  # including the head's blocks
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_parameter_count_matches_the_paper() -> None:
    with torch.device("meta"):
        model = catalog.build(
            dataclasses.replace(presets.get_generator("insightar-7b").generator, prompt_format="bytes")
        )
    assert isinstance(model, InsightAR)
    language_model = sum(p.numel() for p in model.language_model.parameters())
    assert language_model / 1e9 == pytest.approx(6.91 - 102_400 * 4096 / 1e9, abs=0.01)  # without its output layer
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(6.6, abs=0.05)


def test_rejects_invalid_configs() -> None:
    few = dataclasses.replace(SMALL, architecture={**SMALL.architecture, "vocab_size": 256})
    with pytest.raises(ConfigError, match="prompts have 257 ids, the language model knows 256"):
        InsightAR(few, ByteTokenizer(8))
    with pytest.raises(ConfigError, match="names no model_type"):
        dataclasses.replace(SMALL, architecture={})
    with pytest.raises(ConfigError, match="1 codebook_dims for 2 codebooks"):
        dataclasses.replace(SMALL, codebook_dims=(3,))
    for name in ("codebook_sizes", "codebook_dims", "token_shape"):
        for value in ((), (0,), (3, -1)):
            with pytest.raises(ConfigError, match=f"{name} = .* must be one positive size or more"):
                dataclasses.replace(SMALL, **{name: value})
    odd = {"model_type": "gpt2", "n_embd": 30, "n_layer": 1, "n_head": 2, "vocab_size": 300}
    with pytest.raises(ConfigError, match="a factorized head of 30 channels cannot be cut into 2 heads"):
        InsightAR(dataclasses.replace(SMALL, architecture=odd, head="factorized"), ByteTokenizer(4))
    small_bert = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    for architecture, message in (
        ({"model_type": "no such model"}, "no language model can be made of this"),
        ({**LLAMA, "num_hidden_layers": 1.5}, "no language model can be made of this"),
        ({**LLAMA, "vocab_size": -3}, "no language model can be made of this"),
        ({"model_type": "vit"}, "has no embeddings of text tokens"),
        ({"model_type": "bert", **small_bert}, "attends to later tokens"),
        ({"model_type": "t5", "d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2}, "takes no position_ids"),
        ({"model_type": "clip_text_model", **small_bert}, "takes no inputs_embeds"),
        ({**LLAMA, "max_position_embeddings": 20}, "prompt and picture have 21 tokens, this llama sees 20"),
        ({**LLAMA, "model_type": "mistral", "sliding_window": 8}, "this mistral sees 8 of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            InsightAR(dataclasses.replace(SMALL, architecture=architecture), ByteTokenizer(4))


WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {**WIDTHS, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": WIDTHS,
    "mistral": {**WIDTHS, "num_key_value_heads": 1, "sliding_window": None},
    "qwen2": {**WIDTHS, "num_key_value_heads": 1},
    "gemma": {**WIDTHS, "num_key_value_heads": 1, "head_dim": 16},
    "falcon": WIDTHS,
    "gemma2": {**WIDTHS, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64},  # has no fused attention
    "lfm2": {**WIDTHS, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"], "pad_token_id": None},
}


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_cache_and_padding_with_other_language_models(kind: str, assert_steps_agree) -> None:
    """Whatever their position encoding: cached logits equal uncached ones, and padding has no influence."""
    model = small(architecture={"model_type": kind, "vocab_size": 257, **OTHERS[kind]})
    codes = some_codes(model)
    assert_steps_agree(model, codes, PROMPTS)
    alone, together = model(codes[1:2], PROMPTS[1:2]), model(codes, PROMPTS)
    assert all(torch.allclose(a[0], b[1], atol=1e-5) for a, b in zip(alone, together, strict=True))
