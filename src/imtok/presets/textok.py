"""Presets of TexTok and its baselines without text, and small ones for a laptop's CPU."""

import dataclasses
from collections.abc import Callable

from imtok.data.loader import DataConfig
from imtok.data.transforms import CropConfig
from imtok.losses.discriminators import StyleDiscriminatorConfig
from imtok.presets.shared import IMAGENET, for_tests
from imtok.tokenizers.continuous import ContinuousConfig
from imtok.tokenizers.quantizers import VQConfig
from imtok.tokenizers.text import TextConfig
from imtok.tokenizers.textok import TexTokConfig
from imtok.training.run import LossConfig, OptimizerConfig, Phase, RunConfig, TrainingConfig

T5 = {256: TextConfig(), 512: TextConfig(encoder="text_encoder/t5_xxl", dim=4096)}
MINILM = TextConfig(encoder="text_encoder/minilm", dim=384, max_tokens=48)
_MULTIPLIERS: dict[int, tuple[int | float, ...]] = {256: (1, 2, 4, 4, 4, 4), 512: (0.5, 1, 2, 4, 4, 4, 4)}


def textok(tokens: int, resolution: int, text: bool = True, discrete: bool = False) -> RunConfig:
    """TexTok-Base, 176M, T5-XL at 256 px and T5-XXL at 512 px (TexTok, section 4.1 and appendix C).

    Paper: 270 epochs of ImageNet, rFID at 256 px with 32, 64, 128, 256 tokens: 2.40, 1.53, 1.04, .69; without text
    3.82, 2.04, 1.49, .91. Not trained here.

    The paper does not specify the length of the warm-up (here 1 % of the steps) and gradient clipping (here practically
    off, since every 16th step has R1 at 16 times its weight). Pictures need captions of up to 75 words and, for speed,
    stored features of these (`imtok embed`).

    Deviation: unweighted VGG16 instead of the paper's perceptual network.

    Args:
        tokens: number of latent tokens.
        resolution: side of the pictures in pixels, 256 or 512.
        text: whether the tokenizer is conditioned on captions; otherwise it is the paper's Baseline.
        discrete: use 4,096 codes instead of continuous tokens (appendix A).
    """
    quantizer = VQConfig(codebook_size=4096, codebook_dim=8) if discrete else ContinuousConfig(codebook_dim=8)
    kind = "textok" if text else "baseline"
    return RunConfig(
        name=f"{kind}-vq-{tokens}-{resolution}" if discrete else f"{kind}-{tokens}-{resolution}",
        tokenizer=TexTokConfig(
            num_latent_tokens=tokens,
            patch_size=resolution // 32,
            quantizer=quantizer,
            text=T5[resolution] if text else None,
        ),
        losses=LossConfig(
            l1_weight=0.0,
            l2_weight=1.0,
            perceptual_weight=0.1,
            commitment_weight=0.25,
            adversarial_weight=0.1,
            adversarial_kind="non_saturating",
            discriminator_start=80_000,
            adversarial_start=80_000,
            lecam_weight=1e-4,
            r1_weight=10.0,
        ),
        discriminator=StyleDiscriminatorConfig(resolution=resolution, channel_multipliers=_MULTIPLIERS[resolution]),
        data=DataConfig(crop=CropConfig(resolution=resolution), num_workers=8),
        training=TrainingConfig(
            phases=(Phase(name="train", steps=270 * IMAGENET // 256),),
            global_batch_size=256,
            micro_batch_size=32,
            optimizer=OptimizerConfig(learning_rate=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup_share=0.01),
            ema_decay=0.999,
            max_grad_norm=1000.0,
        ),
    )


def textok_nano() -> RunConfig:
    """TexTok for a laptop's CPU: 1.4M, 2 continuous tokens of 8 channels for a picture of 64 px, MiniLM.

    It has as many values per pixel as the paper's 32 tokens at 256 px; with more, the caption would not be needed. It
    is trained on whole pictures: in random crops, the size of words would vary in a way that no caption describes.

    Deviation: no perceptual and no adversarial loss, whose networks would cost several times as much as a step of the
    tokenizer; other Adam betas; one caption in ten is dropped, so that the tokenizer also works without captions.
    """
    return RunConfig(
        name="textok-nano",
        tokenizer=TexTokConfig(
            num_latent_tokens=2,
            patch_size=8,
            grid_size=8,
            dim=128,
            depth=3,
            num_heads=8,
            text=MINILM,
            start="places",
        ),
        losses=LossConfig(
            l1_weight=0.0, l2_weight=1.0, perceptual_weight=0.0, commitment_weight=0.25, adversarial_weight=0.0
        ),
        discriminator=StyleDiscriminatorConfig(resolution=64, base_channels=32, channel_multipliers=(1, 2, 4, 4)),
        data=DataConfig(crop=CropConfig(resolution=64, scale=(1.0, 1.0), flip=False), drop_captions=0.1),
        training=TrainingConfig(
            phases=(Phase(name="train", steps=6000),),
            global_batch_size=16,
            optimizer=OptimizerConfig(
                algorithm="muon",
                learning_rate=3e-3,
                betas=(0.9, 0.95),
                weight_decay=0.0,
                warmup_share=0.01,
                final_share=0.05,
            ),
            ema_decay=0.999,
            precision="bf16",
            save_every=250,
            preview_every=500,
            evaluate_every=1000,
            evaluation_pictures=128,
        ),
    )


def baseline_nano() -> RunConfig:
    """The counterpart of textok-nano without text conditioning."""
    base = textok_nano()
    return dataclasses.replace(base, name="baseline-nano", tokenizer=dataclasses.replace(base.tokenizer, text=None))


def textok_debug() -> RunConfig:
    """A text-conditioned tokenizer with all of its losses, trained for twelve steps, for tests."""
    base = textok_nano()
    return dataclasses.replace(
        base,
        name="textok-debug",
        tokenizer=dataclasses.replace(
            base.tokenizer, num_latent_tokens=4, dim=32, depth=1, num_heads=2, quantizer=ContinuousConfig(kl=True)
        ),
        losses=dataclasses.replace(
            base.losses,
            kl_weight=1e-6,
            adversarial_weight=0.1,
            adversarial_kind="non_saturating",
            adversarial_start=3,
            lecam_weight=1e-4,
            r1_weight=10.0,
            r1_every=4,
        ),
        discriminator=StyleDiscriminatorConfig(resolution=64, base_channels=8, channel_multipliers=(1, 2, 2)),
        training=for_tests(base.training, Phase(name="train", steps=12)),
    )


def _member(tokens: int, resolution: int, text: bool, discrete: bool) -> Callable[[], RunConfig]:
    """Return a preset of one member of the family."""

    def preset() -> RunConfig:
        return textok(tokens, resolution, text, discrete)

    preset.__name__ = preset().name
    what = "4,096 codes" if discrete else "continuous tokens"
    conditioning = "conditioned on captions by T5" if text else "the baseline without text"
    table = "at 256 px only in the paper" if discrete and resolution == 512 else f"Table {6 if discrete else 1}"
    preset.__doc__ = f"TexTok-Base at {resolution} px: {tokens} tokens, {what}, {conditioning} (TexTok, {table})."
    return preset


def _nano_member(tokens: int, twin: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Return a preset of textok-nano or baseline-nano with another number of tokens."""

    def preset() -> RunConfig:
        base = twin()
        tokenizer = dataclasses.replace(base.tokenizer, num_latent_tokens=tokens)
        return dataclasses.replace(base, name=f"{base.name}-{tokens}", tokenizer=tokenizer)

    preset.__name__ = preset().name
    preset.__doc__ = (
        f"{twin().name} with {tokens} tokens in place of 2 (short runs are measured in docs/papers/textok.md)."
    )
    return preset


PRESETS: tuple[Callable[[], RunConfig], ...] = (
    *(
        _member(tokens, resolution, text, discrete)
        for discrete in (False, True)
        for text in (True, False)
        for resolution in (256, 512)
        for tokens in (32, 64, 128, 256)
    ),
    textok_nano,
    baseline_nano,
    *(_nano_member(tokens, twin) for twin in (textok_nano, baseline_nano) for tokens in (8, 16, 32)),
    textok_debug,
)
