from dataclasses import replace

import pytest
import torch

from imtok import presets, pretrained
from imtok.config import ConfigError
from imtok.generators import catalog
from imtok.generators.diffusion import DiffusionSamplingConfig
from imtok.generators.sampling import SamplingConfig
from imtok.layers.model import Model
from imtok.tokenizers import build
from imtok.training.run import RunConfig
from imtok.training.tasks import TokenizerTask


def on_meta(name: str) -> Model:
    run = presets.get_run(name)
    with torch.device("meta"):
        return build(run.tokenizer) if isinstance(run, RunConfig) else catalog.build(run.generator)


def millions(name: str) -> float:
    return sum(tensor.numel() for tensor in on_meta(name).weights().values()) / 1e6


@pytest.mark.parametrize(
    ("name", "expected", "factor"),
    [
        ("insighttok", 426.0, 16),
        ("insighttok-65k", 426.0 + 49_152 * 256 / 1e6, 16),
        ("insighttok-small", 111.0, 16),
        ("fqgan-dual", 111.3, 16),
        ("fqgan-triple", 131.7, 16),
    ],
)
def test_parameter_counts_match_the_papers(name: str, expected: float, factor: int) -> None:
    assert millions(name) == pytest.approx(expected, abs=0.05)
    assert presets.get(name).tokenizer.downsample_factor == factor


@pytest.mark.parametrize(
    ("name", "expected"), [("insighttok-f8", None), ("fqgan-dual-f8", 110), ("fqgan-triple-f8", 131)]
)
def test_f8_presets_have_downsample_factor_8_and_published_sizes(name: str, expected: float | None) -> None:
    assert presets.get(name).tokenizer.downsample_factor == 8
    if expected is not None:
        assert millions(name) == pytest.approx(expected, rel=0.005)


def test_insighttok_has_the_values_of_appendix_e1() -> None:
    run = presets.get("insighttok")
    assert [(p.name, p.steps) for p in run.training.phases] == [
        ("pretrain", 200_000),
        ("text-and-face", 40_000),
        ("decoder", 40_000),
    ]
    weights = run.losses.weights()
    assert (weights["l1"], weights["commitment"], weights["perceptual"], weights["adversarial"]) == (1, 0.02, 0.5, 0.5)
    assert weights["lecam"] == 0.05
    assert [p.weights for p in run.training.phases] == [{}, {"text": 1, "face": 1}, {"text": 0.1, "face": 0.1}]
    assert run.training.phases[2].trains == ("decoder",)
    optimizer = run.training.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.5, 0.9), 0.05)
    assert (optimizer.warmup_share, optimizer.schedule) == (0.05, "cosine")
    assert (run.training.global_batch_size, run.training.max_grad_norm) == (512, 1.0)
    assert (run.tokenizer.quantizer.codebook_size, run.tokenizer.quantizer.codebook_dim) == (16_384, 256)
    assert run.data.crop.resolution == 256


def test_fqgan_has_the_values_of_the_paper() -> None:
    for name, codebooks in (("fqgan-dual", 2), ("fqgan-triple", 3)):
        run = presets.get(name)
        weights = run.losses.weights()
        assert (weights["l2"], weights["perceptual"], weights["adversarial"], weights["l1"]) == (1, 1, 0.5, 0)
        assert (weights["codebook"], weights["commitment"], weights["entropy"]) == (1, 0.25, 0.03)
        assert weights["disentangle"] == 0.1
        assert run.tokenizer.quantizer.codebook_sizes == (16_384,) * codebooks
        targets = run.losses.representation.targets
        assert [target.branch for target in targets] == list(range(1, codebooks))
        assert weights["representation"] == 0.5
        assert run.training.optimizer.betas == (0.9, 0.95)
        assert run.losses.discriminator_start == run.losses.adversarial_start == 20_000
        assert run.training.optimizer.learning_rate == 2e-4
        assert run.training.optimizer.schedule == "constant"
        assert run.training.global_batch_size * run.training.phases[0].steps == pytest.approx(40 * 1_281_167, rel=1e-3)


@pytest.mark.parametrize(("resolution", "t5"), [(256, 2048), (512, 4096)])
def test_textok_has_the_values_of_the_paper(resolution: int, t5: int) -> None:
    """TexTok, section 4.1 and appendix C: 176M with the projections of T5-XL's states, a discriminator of 24M."""
    extra_projections = 2 * (t5 - 2048) * 768 / 1e6
    for tokens in (32, 64, 128, 256):
        run = presets.get(f"textok-{tokens}-{resolution}")
        assert millions(run.name) == pytest.approx(176 + extra_projections, rel=0.02)
        assert run.tokenizer.num_latent_tokens == tokens
        assert (run.tokenizer.patch_size, run.data.crop.resolution) == (resolution // 32, resolution)
        assert (run.tokenizer.quantizer.codebook_dim, run.tokenizer.quantizer.kl) == (8, False)
        assert run.tokenizer.start == "random"  # section 3.2
        text = run.tokenizer.text
        assert text.encoder == {2048: "text_encoder/t5_xl", 4096: "text_encoder/t5_xxl"}[t5]
        assert text.encoder in {row.name for row in pretrained.status()}
        assert (text.dim, text.max_tokens, text.where, text.how) == (t5, 128, ("encoder", "decoder"), "in_context")
        assert presets.get(f"baseline-{tokens}-{resolution}").tokenizer == replace(run.tokenizer, text=None)
    weights, losses = run.losses.weights(), run.losses
    assert (weights["l2"], weights["l1"], weights["perceptual"], weights["adversarial"]) == (1, 0, 0.1, 0.1)
    assert (weights["lecam"], weights["r1"], losses.adversarial_kind) == (1e-4, 10, "non_saturating")
    assert losses.discriminator_start == losses.adversarial_start == 80_000
    assert losses.r1_every == 16
    training, optimizer = run.training, run.training.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-4, (0, 0.99), 0)
    assert (optimizer.schedule, training.ema_decay, training.global_batch_size) == ("cosine", 0.999, 256)
    assert optimizer.warmup_share == 0.01
    assert training.global_batch_size * training.phases[0].steps == pytest.approx(270 * 1_281_167, rel=1e-3)
    with torch.device("meta"):
        task = TokenizerTask(run)
    assert sum(p.numel() for p in task.parameters_of("discriminator")) / 1e6 == pytest.approx(24, rel=0.03)
    assert task.discriminator.resolution == resolution


def test_textok_of_appendix_a_has_4096_codes() -> None:
    for name in ("textok-vq-128-256", "baseline-vq-128-256", "textok-vq-32-512", "baseline-vq-256-512"):
        quantizer = presets.get(name).tokenizer.quantizer
        assert (quantizer.codebook_size, quantizer.codebook_dim) == (4096, 8)
        continuous = millions(name.replace("-vq", ""))
        assert millions(name) == pytest.approx(continuous + 4096 * 8 / 1e6, rel=0.001)


@pytest.mark.parametrize(
    ("name", "size", "tokenizer", "guidance"),
    [
        ("far-b", 415, "fqgan-dual", 2.0),
        ("far-l", 898, "fqgan-dual", 2.0),
        # The third codebook's vectors, its classifier and its columns of the merging layer, by hand.
        ("far-b-triple", 415 + (2 * 16_384 * 1024 + 1024**2) / 1e6, "fqgan-triple", 1.75),
        ("far-l-triple", 898 + (2 * 16_384 * 1280 + 1280**2) / 1e6, "fqgan-triple", 1.75),
    ],
)
def test_far_has_the_values_of_the_paper(name: str, size: float, tokenizer: str, guidance: float) -> None:
    run = presets.get_generator(name)
    assert millions(name) == pytest.approx(size, rel=0.02)
    assert run.generator.codebook_sizes == presets.get(tokenizer).tokenizer.quantizer.codebook_sizes
    assert run.sampling == SamplingConfig(guidance_scale=(guidance,))  # no top-k, no top-p
    assert run.generator.condition_dropout == 0.1
    optimizer = run.training.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (2e-4, (0.9, 0.95), 0.05)
    assert (optimizer.schedule, optimizer.warmup_share) == ("constant", 0.0)
    assert run.training.global_batch_size * run.training.phases[0].steps == pytest.approx(300 * 1_281_167, rel=1e-3)


def test_dit_has_the_values_of_the_paper() -> None:
    for size, expected in (("b", 130), ("l", 458), ("xl", 675)):
        assert millions(f"dit-{size}-textok-32-512") == pytest.approx(expected, rel=0.02)
    for name in ("dit-xl-textok-128-256", "dit-xl-t2i-textok-128-256", "dit-xl-t2i-textok-256-512"):
        run, tokenizer = presets.get_generator(name), presets.get(name[name.index("textok") :]).tokenizer
        training, optimizer = run.training, run.training.optimizer
        assert (run.generator.token_shape, run.generator.channels) == ((tokenizer.num_latent_tokens,), 8)
        assert run.generator.text == (tokenizer.text if "t2i" in name else None)
        assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (5e-4, (0.9, 0.99), 0.01)
        assert (optimizer.schedule, optimizer.warmup_share) == ("cosine", 0.01)
        assert run.generator.condition_dropout == 0.1
        assert (training.global_batch_size, training.ema_decay) == (1024, 0.9999)
        assert training.global_batch_size * training.phases[0].steps == pytest.approx(350 * 1_281_167, rel=1e-3)
        assert run.sampling == DiffusionSamplingConfig(
            num_inference_steps=250, guidance_scale=3.8, guidance_schedule="power_cosine", guidance_power=4.0
        )
    assert presets.get_generator("dit-l-textok-32-256").sampling.guidance_scale == 1.0  # no guidance in Table 1
    assert presets.get_generator("dit-t2i-nano").generator.text == presets.get("textok-nano").tokenizer.text


@pytest.mark.parametrize("tokens", [8, 16, 32])
@pytest.mark.parametrize("twin", ["textok-nano", "baseline-nano"])
def test_nano_presets_with_more_tokens_differ_only_in_the_token_count(twin: str, tokens: int) -> None:
    base, more = presets.get(twin), presets.get(f"{twin}-{tokens}")
    assert (more.name, more.tokenizer.num_latent_tokens) == (f"{twin}-{tokens}", tokens)
    assert replace(more, name=twin, tokenizer=replace(more.tokenizer, num_latent_tokens=2)) == base


@pytest.mark.parametrize(("name", "tokens"), [("kl-nano", 256), ("kl-nano-f2", 1024)])
def test_kl_nano_presets_have_the_kl_weight_of_latent_diffusion(name: str, tokens: int) -> None:
    run, tokenizer = presets.get(name), presets.create_tokenizer(name)
    assert tokenizer.encode(torch.zeros(1, 3, 64, 64)).latents.shape == (
        1,
        tokens,
        run.tokenizer.quantizer.codebook_dim,
    )
    assert run.tokenizer.quantizer.kl
    # Latent diffusion's weight is 1e-6 next to a sum over all values of a picture, whose mean is taken here.
    assert run.losses.kl_weight * 3 * 64**2 == pytest.approx(1e-6)


def test_insightar_has_the_values_of_the_paper() -> None:
    """Section 3.3 and appendix E.2."""
    run = presets.get_generator("insightar-7b")
    tokenizer = presets.get("insighttok").tokenizer
    assert run.generator.codebook_sizes == (tokenizer.quantizer.codebook_size,)
    assert run.generator.codebook_dims == (tokenizer.quantizer.codebook_dim,)
    first, second = run.training.phases
    assert (first.steps, first.learning_rate) == (20_000, 1e-3)
    assert {"adapter", "head", "start_of_image"} <= set(first.trains)
    assert "language_model" not in first.trains
    assert (second.trains, second.learning_rate) == (("all",), 1e-4)
    optimizer = run.training.optimizer
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.95), 0.0)
    assert (run.training.global_batch_size, run.training.max_grad_norm) == (512, 1.0)
    assert run.sampling == SamplingConfig(guidance_scale=(5.0,), top_k=4096)
    assert run.generator.condition_dropout == 0.1


def test_only_insightar_7b_shards_its_weights() -> None:
    runs = [presets.get_run(name) for name in presets.names()]
    assert [run.name for run in runs if run.training.shard_weights] == ["insightar-7b"]
    assert presets.get_generator("insightar-7b").training.gradient_checkpointing


def test_preset_getters_reject_presets_of_the_other_kind() -> None:
    with pytest.raises(ConfigError, match="far-nano is a generator's preset"):
        presets.get("far-nano")
    with pytest.raises(ConfigError, match="vqgan-nano is a tokenizer's preset"):
        presets.get_generator("vqgan-nano")


def test_insighttok_small_takes_100k_steps_in_two_phases() -> None:
    phases = presets.get("insighttok-small").training.phases
    assert sum(phase.steps for phase in phases) == 100_000
    assert len(phases) == 2


@pytest.mark.parametrize("name", [name for name in presets.names() if "-nano" in name or name.endswith("-debug")])
def test_nano_and_debug_weights_are_at_most_8_mb(name: str) -> None:
    assert millions(name) * 2 <= 8  # MB in fp16


@pytest.mark.parametrize(
    "name", [name for name in presets.names() if presets.get_run(name).training.optimizer.algorithm == "muon"]
)
def test_presets_with_muon_have_parameters_for_it(name: str) -> None:
    assert on_meta(name).muon_parameters()


def test_discriminator_has_the_2_8m_parameters_of_table_11() -> None:
    with torch.device("meta"):
        task = TokenizerTask(presets.get("insighttok-small"))
    assert sum(p.numel() for p in task.parameters_of("discriminator")) / 1e6 == pytest.approx(2.8, abs=0.05)


def test_create_tokenizer_overrides_preset_settings() -> None:
    tokenizer = presets.create_tokenizer("insighttok-debug", codebook_size=32, channels=32)
    assert tokenizer.codebook_sizes == (32,)
    with pytest.raises(ConfigError, match="insighttok-debug: codebok_size: no such setting"):
        presets.create_tokenizer("insighttok-debug", codebok_size=32)
