"""TexTok: the influence of text, the published sizes, and every bottleneck."""

import dataclasses
import math
import re

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from imtok.config import ConfigError, from_dict, to_dict
from imtok.tokenizers import (
    ContinuousConfig,
    EMAVQConfig,
    FactorizedVQConfig,
    TextConfig,
    TexTok,
    TexTokConfig,
    VQConfig,
    VQGANConfig,
    build,
)
from imtok.tokenizers.base import Text
from imtok.tokenizers.continuous import Continuous

SMALL = TexTokConfig(
    num_latent_tokens=6, grid_size=4, dim=32, depth=2, num_heads=4, text=TextConfig(encoder="any", dim=12)
)
HOW = [
    ("in_context", ("encoder", "decoder")),
    ("cross_attention", ("encoder", "decoder")),
    ("in_context", ("decoder",)),
    ("in_context", ("encoder",)),
]


def small(**changes: object) -> TexTok:
    torch.manual_seed(0)
    tokenizer = build(dataclasses.replace(SMALL, **changes)).eval()  # pyright: ignore[reportArgumentType]
    assert isinstance(tokenizer, TexTok)
    return tokenizer


def text_conditioned(how: str, where: tuple[str, ...]) -> TexTok:
    assert SMALL.text is not None
    return small(text=dataclasses.replace(SMALL.text, how=how, where=where))  # pyright: ignore[reportArgumentType]


def pictures(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def captions(tokens: int = 5) -> Text:
    states = torch.randn(2, tokens, 12, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[1, 3:] = False
    return states, mask


@torch.no_grad()
def reconstructed(tokenizer: TexTok, text: Text | None, images: torch.Tensor | None = None) -> torch.Tensor:
    return tokenizer.reconstruct(pictures() if images is None else images, text)


@pytest.mark.parametrize(("how", "where"), HOW)
def test_masked_text_has_exactly_no_influence(how: str, where: tuple[str, ...]) -> None:
    tokenizer, (states, mask) = text_conditioned(how, where), captions()
    changed = states.clone()
    changed[~mask] = 1e4
    assert torch.equal(reconstructed(tokenizer, (states, mask)), reconstructed(tokenizer, (changed, mask)))
    changed[0, 2] += 1.0
    assert not torch.allclose(
        reconstructed(tokenizer, (states, mask))[0], reconstructed(tokenizer, (changed, mask))[0], atol=1e-6
    )


@pytest.mark.parametrize(("how", "where"), HOW)
def test_padding_and_order_of_text_tokens_do_not_matter(how: str, where: tuple[str, ...]) -> None:
    tokenizer, (states, mask) = text_conditioned(how, where), captions()
    plain = reconstructed(tokenizer, (states, mask))
    longer = torch.cat([torch.randn(2, 3, 12), states], dim=1), torch.cat([torch.zeros(2, 3).bool(), mask], dim=1)
    assert torch.allclose(plain, reconstructed(tokenizer, longer), atol=1e-5)
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.allclose(plain, reconstructed(tokenizer, (states[:, order], mask[:, order])), atol=1e-5)


@pytest.mark.parametrize(("how", "where"), HOW)
def test_fully_masked_text_equals_no_text(how: str, where: tuple[str, ...]) -> None:
    tokenizer, (states, mask) = text_conditioned(how, where), captions()
    mask[0] = False
    partly_masked = reconstructed(tokenizer, (states, mask))
    unconditional = reconstructed(tokenizer, None)
    assert torch.allclose(partly_masked[0], unconditional[0], atol=1e-5)
    assert not torch.allclose(partly_masked[1], unconditional[1], atol=1e-4)
    for half in (tokenizer.encoder, tokenizer.decoder):
        half.text_in = None
    assert torch.equal(reconstructed(tokenizer, None), unconditional)


@torch.no_grad()
@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_text_conditions_only_the_configured_half(where: str) -> None:
    images, text = pictures(), captions()
    tokenizer = text_conditioned("in_context", (where,))
    conditional, unconditional = (tokenizer.encode(images, condition).latents for condition in (text, None))
    decoded = [tokenizer.decode(unconditional, condition) for condition in (text, None)]
    assert torch.equal(conditional, unconditional) == (where == "decoder")
    assert torch.equal(*decoded) == (where == "encoder")
    # The default grid is that of the config.
    assert torch.equal(decoded[1], tokenizer.decode(unconditional, grid_size=(4, 4)))
    without_text = small(text=None)
    assert torch.equal(reconstructed(without_text, text), reconstructed(without_text, None))
    assert not any("text" in name or "cross" in name for name in without_text.state_dict())


def test_number_of_tokens_changes_only_shapes_of_image_tokens() -> None:
    few, many = (small(num_latent_tokens=n).state_dict() for n in (6, 9))
    assert few.keys() == many.keys()
    changed = {name for name in few if few[name].shape != many[name].shape}
    assert changed == {"encoder.image_tokens", "decoder.positions"}


@pytest.mark.parametrize(("tokens", "rows"), [(16, 4), (8, 2), (32, 4), (7, 1)])
def test_start_places_makes_tokens_similar_to_their_patches(tokens: int, rows: int) -> None:
    """A patch is most similar to the token of its cell, and the first half of the heads attends to this token most."""
    tokenizer = small(num_latent_tokens=tokens, grid_size=8 if tokens > 7 else 7, dim=64, start="places")
    side = tokenizer.config.grid_size
    columns = tokens // rows
    down, across = (torch.arange(side) * parts // side for parts in (rows, columns))
    expected = (down[:, None] * columns + across).flatten()
    for half, places, table in (
        (tokenizer.encoder, tokenizer.encoder.image_tokens, tokenizer.encoder.positions.table),
        (tokenizer.decoder, tokenizer.decoder.positions, tokenizer.decoder.patch_tokens.table),
    ):
        assert torch.equal((table @ places.T).argmax(1), expected)
        for block in half.transformer.blocks:
            queries, keys, values = block.attention.qkv.weight.chunk(3)
            assert torch.equal(queries[:32], keys[:32])
            assert not (queries[32:] == keys[32:]).any()
            assert not (keys == values).any()
        attention = half.transformer.blocks[0].attention
        both = torch.nn.functional.layer_norm(torch.cat([table, places]), (64,))
        queries, keys, _ = attention.qkv(both).unflatten(1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
        weights = (queries @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1)[:, : side**2, side**2 :]
        local, other = (heads[:, torch.arange(side**2), expected].mean() / heads.mean() for heads in weights.chunk(2))
        assert local > 2
        assert other < 2


def test_default_start_initializes_tokens_at_random() -> None:
    tokenizer = small(num_latent_tokens=64, dim=64, depth=1)
    for half, places in ((tokenizer.encoder, "image_tokens"), (tokenizer.decoder, "positions")):
        assert getattr(half, places).std().item() == pytest.approx(0.02, rel=0.05)
        queries, keys, _ = half.transformer.blocks[0].attention.qkv.weight.chunk(3)
        assert not (queries == keys).any()
    assert not torch.equal(tokenizer.encoder.image_tokens, tokenizer.decoder.positions)


def test_zero_tokens_decode_from_the_caption_alone() -> None:
    tokenizer = small(num_latent_tokens=0)
    reconstruction = reconstructed(tokenizer, captions())
    assert reconstruction.shape == pictures().shape
    assert torch.equal(reconstruction, reconstructed(tokenizer, captions(), pictures().flip(3)))
    assert not torch.equal(reconstruction, reconstructed(tokenizer, None))
    tokenizer.train()
    encoding = tokenizer.encode(pictures(), captions())
    tokenizer.decode(encoding.latents, captions(), encoding.grid_size).square().mean().backward()
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 40), (33, 20)])
def test_images_of_any_size_are_reconstructed_from_six_tokens(height: int, width: int) -> None:
    tokenizer, images = small(), pictures(height, width)
    encoding = tokenizer.encode(images, captions())
    assert encoding.latents.shape == (2, 6, 8)
    assert encoding.codes is None
    assert encoding.grid_size == (-(-height // 8), -(-width // 8))
    assert reconstructed(tokenizer, captions(), images).shape == images.shape


@pytest.mark.parametrize(
    "quantizer",
    [
        VQConfig(codebook_size=32, codebook_dim=4),
        EMAVQConfig(codebook_size=32, codebook_dim=4),
        FactorizedVQConfig(codebook_sizes=(16, 8), sub_dim=4),
    ],
    ids=lambda config: config.kind,
)
def test_codes_and_latents_decode_to_equal_images(quantizer: object) -> None:
    tokenizer, text = small(quantizer=quantizer), captions()
    with torch.no_grad():
        encoding = tokenizer.encode(pictures(), text)
        assert encoding.codes is not None
        assert encoding.codes.shape == (2, 6, len(tokenizer.codebook_sizes))
        decoded = tokenizer.decode(encoding.latents, text, encoding.grid_size)
        assert torch.equal(tokenizer.decode_codes(encoding.codes, text, encoding.grid_size), decoded)


def test_patches_are_decoded_at_their_positions_in_the_image() -> None:
    """With identities in place of the blocks and of both projections, the patch tokens hold the picture's pixels."""
    tokenizer, images = small(patch_size=2, dim=12, text=None), pictures(8, 6)
    decoder = tokenizer.decoder
    with torch.no_grad():
        tokenizer.encoder.patches_in.weight.copy_(torch.eye(12).view(12, 3, 2, 2))
        tokenizer.encoder.patches_in.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        decoder.patches_out.weight.copy_(torch.eye(12))
        decoder.patches_out.bias.zero_()
    patches = tokenizer.encoder.patches_in(images).flatten(2).transpose(1, 2)  # batch, 12 patches, 12
    decoder.patch_tokens.forward = lambda grid_size: patches  # pyright: ignore[reportAttributeAccessIssue]
    decoder.transform = lambda tokens, text: tokens  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(tokenizer.decode(torch.zeros(2, 6, 8), grid_size=(4, 3)), images)


@pytest.mark.parametrize(
    ("depth", "dim", "heads", "millions"), [(8, 512, 8, 54), (12, 768, 12, 176), (24, 1024, 16, 612)]
)
def test_parameter_counts_match_published_sizes(depth: int, dim: int, heads: int, millions: float) -> None:
    """TexTok, Table 4e."""
    with torch.device("meta"):
        tokenizer = build(TexTokConfig(depth=depth, dim=dim, num_heads=heads))
    assert sum(p.numel() for p in tokenizer.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_every_weight_gets_gradient_unchanged_by_grad_checkpointing() -> None:
    for how, where in HOW[:2]:
        gradients = []
        for recompute in (False, True):
            tokenizer = text_conditioned(how, where).train()
            tokenizer.set_grad_checkpointing(recompute)
            encoding = tokenizer.encode(pictures(), captions())
            decoded = tokenizer.decode(encoding.latents, captions(), encoding.grid_size)
            (decoded - pictures()).square().mean().backward()
            gradients.append({name: p.grad for name, p in tokenizer.named_parameters()})
        assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
        for name, gradient in gradients[0].items():
            assert gradient is not None
            torch.testing.assert_close(gradients[1][name], gradient)


def test_kl_bottleneck_samples_in_training_and_returns_divergence() -> None:
    torch.manual_seed(0)
    bottleneck, z = Continuous(ContinuousConfig(codebook_dim=3, kl=True)), torch.randn(2, 5, 3)
    assert bottleneck.to_moments is not None
    mean, log_variance = bottleneck.to_moments(z).chunk(2, dim=2)
    divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2)).mean()
    output = bottleneck.train()(z)
    assert output.losses["kl"].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert not torch.equal(output.latents, bottleneck(z).latents)
    assert torch.equal(bottleneck.eval()(z).latents, mean)
    assert bottleneck(z).losses == {}
    samples = torch.stack([bottleneck.train()(z).latents for _ in range(3000)])
    assert torch.allclose(samples.mean(0), mean, atol=0.15)
    assert torch.allclose(samples.std(0), (log_variance / 2).exp(), rtol=0.1)


@pytest.mark.parametrize("kl", [False, True])
def test_vqgan_supports_continuous_bottleneck(kl: bool) -> None:
    config = VQGANConfig(
        channels=16,
        channel_multipliers=(1, 2),
        groups=2,
        residual_blocks=1,
        quantizer=ContinuousConfig(codebook_dim=4, kl=kl),
    )
    tokenizer = build(config).eval()
    encoding = tokenizer.encode(pictures())
    assert encoding.codes is None
    assert encoding.latents.shape == (2, 256, 4)
    assert tokenizer.bits_per_token == 4 * 32
    with pytest.raises(TypeError, match="has no codes"):
        tokenizer.lookup(torch.zeros(1, 1, 1, dtype=torch.long))


def test_config_survives_dict_round_trip() -> None:
    config = dataclasses.replace(SMALL, quantizer=FactorizedVQConfig(codebook_sizes=(4, 4)))
    assert from_dict(TexTokConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TexTokConfig(dim=100, num_heads=3), "3 heads do not divide 100"),
        (lambda: TexTokConfig(patch_size=0), "all sizes must be positive"),
        (lambda: TexTokConfig(mlp_ratio=math.nan), "mlp_ratio = nan must be finite"),
        (lambda: TexTokConfig(num_latent_tokens=-1), "num_latent_tokens = -1"),
        (lambda: TexTokConfig(num_latent_tokens=0, text=None), "at least 1, or 0 for continuous tokens and a decoder"),
        (
            lambda: TexTokConfig(num_latent_tokens=0, text=TextConfig(where=("encoder",))),
            "a decoder that is conditioned on text",
        ),
        (lambda: TexTokConfig(num_latent_tokens=0, quantizer=VQConfig()), "at least 1, or 0 for"),
        (lambda: TextConfig(where=()), "where not empty"),
        (lambda: TextConfig(template="a {label}", classes=("cat",)), "classes are for the encoder 'labels'"),
        (lambda: ContinuousConfig(codebook_dim=0), "codebook_dim must be positive"),
    ],
)
def test_rejects_invalid_configs(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_rejects_text_width_and_token_count_of_another_model() -> None:
    tokenizer, mask = small(), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape("text states of 13 channels, expected 12")):
        tokenizer.encode(pictures(), (torch.zeros(2, 5, 13), mask))
    with pytest.raises(ValueError, match="7 tokens, expected 6"):
        tokenizer.decode(torch.zeros(2, 7, 8))
