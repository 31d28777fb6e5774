"""Presets of FQGAN, and small factorized tokenizers."""

import dataclasses

from imtok.data.loader import DataConfig
from imtok.losses.representation import RepresentationConfig, RepresentationTarget
from imtok.presets.insighttok import insighttok_debug, insighttok_nano, vqgan_nano
from imtok.tokenizers.quantizers import FactorizedVQConfig
from imtok.tokenizers.vqgan import AdapterConfig, VQGANConfig
from imtok.training.run import LossConfig, OptimizerConfig, Phase, RunConfig, TrainingConfig

_CLIP_L14 = (RepresentationTarget(branch=1, network="vision/clip_vit_l14", dim=1024),)
_DINO_AND_CLIP_B16 = (
    RepresentationTarget(branch=1, network="vision/dinov2_small", dim=384),
    RepresentationTarget(branch=2, network="vision/clip_vit_b16", dim=768),
)
_CAPTION = RepresentationTarget(branch=1, network="text_encoder/minilm", dim=384)


def fqgan_dual() -> RunConfig:
    """FQGAN with two sub-codebooks of 16,384, 111M, f16 (FQGAN, section 4.1 and appendix B).

    Paper: 8 A100, 40 epochs of ImageNet (200k steps of 256): rFID .94, PSNR 22.02, IS 57.15. Not trained here.

    The second branch learns to predict the embedding of CLIP ViT-L/14, whose weights must be provided by the user
    (`imtok weights`). The paper specifies neither the start of the discriminator nor the Adam betas; as in the authors'
    release, the discriminator starts untrained at step 20,000, and the betas are (.9, .95).

    Deviation: unweighted VGG16 instead of LPIPS.
    """
    return _fqgan("fqgan-dual", f8=False, targets=_CLIP_L14)


def fqgan_triple() -> RunConfig:
    """FQGAN with three sub-codebooks of 16,384, 132M, f16.

    Paper: 40 epochs: rFID .76, PSNR 22.73, IS 58.05. The second branch predicts DINOv2-small, the third CLIP ViT-B/16;
    everything else is as in fqgan-dual.
    """
    return _fqgan("fqgan-triple", f8=False, targets=_DINO_AND_CLIP_B16)


def fqgan_dual_f8() -> RunConfig:
    """FQGAN with two sub-codebooks of 16,384, 110M, f8: four times the tokens (published rFID .32)."""
    return _fqgan("fqgan-dual-f8", f8=True, targets=_CLIP_L14)


def fqgan_triple_f8() -> RunConfig:
    """FQGAN with three sub-codebooks of 16,384, 131M, f8 (published rFID .24)."""
    return _fqgan("fqgan-triple-f8", f8=True, targets=_DINO_AND_CLIP_B16)


def fqgan_dual_nano() -> RunConfig:
    """FQGAN for a laptop's CPU: two sub-codebooks of 2,048, 3.6M, f8, 22 bits a token; trained at 128 px.

    The second branch learns to predict MiniLM's embedding of the picture's caption, so the pictures need captions.

    Deviation: those of vqgan-nano; adapters and heads of one block.
    """
    return _fqgan_nano("fqgan-dual-nano", (2048, 2048), (_CAPTION,))


def fqgan_dual_nano_finetune() -> RunConfig:
    """fqgan-dual-nano starting from a pretrained encoder and decoder, as in recipes/fqgan_nano.py.

    The batch size is 8, for some two thousand steps in three hours of one CPU core.
    """
    base = fqgan_dual_nano()
    phases = (
        Phase(name="train", steps=1800, region_share=0.6),
        Phase(name="decoder", steps=150, trains=("decoder",), region_share=0.8),
    )
    training = dataclasses.replace(base.training, phases=phases, global_batch_size=8)
    return dataclasses.replace(base, name="fqgan-dual-nano-finetune", training=training)


def fqgan_triple_nano() -> RunConfig:
    """FQGAN for a laptop's CPU with three sub-codebooks of 2,048, 3.9M, f8, 33 bits a token.

    The third branch learns from the caption, as the second branch of fqgan-dual-nano does.

    Deviation: the second branch has no target. EfficientNet-Lite0 is the feature network of the Fréchet distances, and
    a head for its 1,280 channels would cost several times as much as a step of the tokenizer.
    """
    return _fqgan_nano("fqgan-triple-nano", (2048,) * 3, (dataclasses.replace(_CAPTION, branch=2),))


def insight_fqgan_nano() -> RunConfig:
    """fqgan-dual-nano with InsightTok's text and face losses in its last two phases; not in either paper."""
    base, phases = fqgan_dual_nano(), insighttok_nano().training.phases
    return dataclasses.replace(
        base, name="insight-fqgan-nano", training=dataclasses.replace(base.training, phases=phases)
    )


def fqgan_debug() -> RunConfig:
    """A factorized tokenizer with all of its losses, trained for twelve steps, for tests."""
    base = insighttok_debug()
    tokenizer = dataclasses.replace(
        base.tokenizer,
        quantizer=FactorizedVQConfig(codebook_sizes=(32, 16), sub_dim=4),
        adapter=AdapterConfig(depth=1, num_heads=2, grid_size=8),
    )
    losses = _losses(base.losses, (_CAPTION,))
    return dataclasses.replace(base, name="fqgan-debug", tokenizer=tokenizer, losses=losses)


def _fqgan_nano(name: str, sizes: tuple[int, ...], targets: tuple[RepresentationTarget, ...]) -> RunConfig:
    base = vqgan_nano()
    tokenizer = dataclasses.replace(
        base.tokenizer,
        quantizer=FactorizedVQConfig(codebook_sizes=sizes),
        adapter=AdapterConfig(depth=1, num_heads=4),
    )
    return dataclasses.replace(base, name=name, tokenizer=tokenizer, losses=_losses(base.losses, targets))


def _losses(base: LossConfig, targets: tuple[RepresentationTarget, ...]) -> LossConfig:
    """Return the losses with FQGAN's own added, at the paper's weights, for a small run."""
    return dataclasses.replace(
        base,
        commitment_weight=0.25,
        entropy_weight=0.03,
        disentangle_weight=0.1,
        representation_weight=0.5,
        representation=RepresentationConfig(targets=targets, depth=1),
    )


def _fqgan(name: str, f8: bool, targets: tuple[RepresentationTarget, ...]) -> RunConfig:
    """Return the config of a full-size run; all branches but the first have a target."""
    grid_size = 32 if f8 else 16
    return RunConfig(
        name=name,
        tokenizer=VQGANConfig(
            channels=128,
            channel_multipliers=(1, 2, 2, 4) if f8 else (1, 1, 2, 2, 4),
            residual_blocks=2,
            quantizer=FactorizedVQConfig(codebook_sizes=(16_384,) * (1 + len(targets))),
            adapter=AdapterConfig(grid_size=grid_size),
        ),
        losses=LossConfig(
            l1_weight=0.0,
            l2_weight=1.0,
            perceptual_weight=1.0,
            commitment_weight=0.25,
            codebook_weight=1.0,
            entropy_weight=0.03,
            disentangle_weight=0.1,
            representation_weight=0.5,
            representation=RepresentationConfig(targets=targets, grid_size=grid_size),
            adversarial_weight=0.5,
            discriminator_start=20_000,
            adversarial_start=20_000,
            lecam_weight=0.0,
        ),
        data=DataConfig(num_workers=8),
        training=TrainingConfig(
            phases=(Phase(name="train", steps=200_000),),
            global_batch_size=256,
            micro_batch_size=32,
            optimizer=OptimizerConfig(
                learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=0.0, warmup_share=0.0, schedule="constant"
            ),
        ),
    )


PRESETS = (
    fqgan_dual,
    fqgan_triple,
    fqgan_dual_f8,
    fqgan_triple_f8,
    fqgan_dual_nano,
    fqgan_dual_nano_finetune,
    fqgan_triple_nano,
    insight_fqgan_nano,
    fqgan_debug,
)
