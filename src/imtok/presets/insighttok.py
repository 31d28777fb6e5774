"""Presets of InsightTok, and small ones for a laptop's CPU."""

import dataclasses

from imtok.data.loader import DataConfig
from imtok.data.transforms import CropConfig
from imtok.losses.discriminators import PatchDiscriminatorConfig
from imtok.losses.regions import FaceLossConfig, TextLossConfig
from imtok.presets.shared import for_tests
from imtok.tokenizers.quantizers import EMAVQConfig
from imtok.tokenizers.vqgan import VQGANConfig
from imtok.training.run import LossConfig, OptimizerConfig, Phase, RunConfig, TrainingConfig

_SCALED_TEXT = TextLossConfig(layer_scale="energy")
_SCALED_FACE = FaceLossConfig(layer_scale="energy")


def insighttok() -> RunConfig:
    """InsightTok, 426M, f16, 16,384 codes at 256 px (section 4, appendix E.1).

    Paper: 32 A100 for about 5 days; TokBench at 512 px: T-ACC 53.05, T-NED 71.40, F-Sim .36, rFID .69, PSNR 23.64.
    Not trained here; docs/papers/insighttok.md describes what was run.

    The region losses are as printed (`layer_scale="none"`), with the paper's weights. These were chosen for ABINet and
    ArcFace; differences of PP-OCRv6's features are hundreds of times as large. With PP-OCRv6, set
    `--losses.text.layer-scale energy` and `--losses.face.layer-scale energy`.
    """
    return RunConfig(
        name="insighttok",
        data=DataConfig(num_workers=8),
        training=TrainingConfig(
            micro_batch_size=16,
            phases=(
                Phase(name="pretrain", steps=200_000),
                Phase(name="text-and-face", steps=40_000, weights={"text": 1.0, "face": 1.0}, region_share=0.9),
                Phase(
                    name="decoder",
                    steps=40_000,
                    trains=("decoder",),
                    weights={"text": 0.1, "face": 0.1},
                    region_share=0.9,
                ),
            ),
        ),
    )


def insighttok_65k() -> RunConfig:
    """InsightTok with 65,536 codes (Table 6: T-ACC 55.69, F-Sim .40)."""
    base = insighttok()
    quantizer = EMAVQConfig(codebook_size=65_536)
    return dataclasses.replace(
        base, name="insighttok-65k", tokenizer=dataclasses.replace(base.tokenizer, quantizer=quantizer)
    )


def insighttok_f8() -> RunConfig:
    """InsightTok with four levels instead of five: f8, four times the tokens. Not in the paper."""
    base = insighttok()
    tokenizer = dataclasses.replace(base.tokenizer, channel_multipliers=(1, 2, 2, 4))
    return dataclasses.replace(base, name="insighttok-f8", tokenizer=tokenizer)


def insighttok_small() -> RunConfig:
    """The paper's lightweight setup: 111M, 100k steps over the first two phases (appendix E.1).

    Paper (Table 8): T-ACC 40.64, F-Sim .35 with both losses; 23.52 and .27 without. The paper does not specify how the
    100k steps are split; here 80k and 20k.
    """
    base = insighttok()
    pretrain, regions, _ = base.training.phases
    phases = (dataclasses.replace(pretrain, steps=80_000), dataclasses.replace(regions, steps=20_000))
    return dataclasses.replace(
        base,
        name="insighttok-small",
        tokenizer=dataclasses.replace(base.tokenizer, channels=128),
        training=dataclasses.replace(base.training, phases=phases),
    )


def vqgan_nano() -> RunConfig:
    """A VQGAN for a laptop's CPU, without the text and face losses: 3.2M, f8, 4,096 codes at 128 px.

    The counterpart of insighttok-nano: same architecture, data, steps and phases, without the two losses. The shipped
    weights, which continue nano-pretraining (recipes/nano.py, 85 minutes on two CPU cores), keep 37.5 % of unseen signs
    and 43.0 % of real words legible; face similarity is .946, PSNR 21.73 on other pictures.

    Deviation: no perceptual and no adversarial loss, whose networks would cost several times as much as a step of the
    tokenizer; other Adam betas, no weight decay; a first phase without quantization.
    """
    return RunConfig(
        name="vqgan-nano",
        tokenizer=VQGANConfig(
            channels=32,
            channel_multipliers=(1, 2, 4),
            residual_blocks=1,
            patch_size=2,
            groups=4,
            latent_channels=64,
            quantizer=EMAVQConfig(codebook_size=4096, codebook_dim=32),
        ),
        losses=LossConfig(perceptual_weight=0.0, adversarial_weight=0.0, text=_SCALED_TEXT, face=_SCALED_FACE),
        discriminator=PatchDiscriminatorConfig(base_channels=32),
        data=DataConfig(
            crop=CropConfig(resolution=128, word_height=(32.0, 64.0), face_size=(48.0, 112.0), max_enlargement=4.0),
            max_words=2,
            max_faces=1,
        ),
        training=TrainingConfig(
            phases=(
                Phase(name="warm-up", steps=200, quantize=False, region_share=0.6),
                Phase(name="pretrain", steps=2400, region_share=0.6),
                Phase(name="continue", steps=600, region_share=0.8),
                Phase(name="decoder", steps=100, trains=("decoder",), region_share=0.8),
            ),
            global_batch_size=16,
            optimizer=OptimizerConfig(learning_rate=8e-4, betas=(0.9, 0.99), weight_decay=0.0, final_share=0.1),
            ema_decay=0.999,
            precision="fp32",
            channels_last=True,
            save_every=250,
            preview_every=500,
            evaluate_every=1000,
            evaluation_pictures=128,
        ),
    )


def insighttok_nano() -> RunConfig:
    """InsightTok for a laptop's CPU: vqgan-nano with the text and face losses in its last two phases.

    The shipped weights (recipes/nano.py, 93 minutes on two CPU cores) keep 52.7 % of unseen signs and 47.3 % of real
    words legible; face similarity is .952, PSNR 21.46 on other pictures.

    Deviation: those of vqgan-nano; the recognizers' layers have equal weights (`layer_scale`), and on that scale the
    text and face losses have a weight of 4 each (with 1 each, reconstructions of real words came closer to the
    originals without being read more often).
    """
    base = vqgan_nano()
    warm_up, pretrain, regions, decoder = base.training.phases
    phases = (
        warm_up,
        pretrain,
        dataclasses.replace(regions, name="text-and-face", weights={"text": 4.0, "face": 4.0}),
        dataclasses.replace(decoder, weights={"text": 0.4, "face": 0.4}),
    )
    return dataclasses.replace(base, name="insighttok-nano", training=dataclasses.replace(base.training, phases=phases))


def nano_pretraining() -> RunConfig:
    """The phases that vqgan-nano and insighttok-nano have in common, to be continued with --init-from.

    The crops are zoomed less: words of 24 to 48 pixels, enlarged at most twofold.
    """
    base = vqgan_nano()
    crop = dataclasses.replace(base.data.crop, word_height=(24.0, 48.0), max_enlargement=2.0)
    return dataclasses.replace(
        base,
        name="nano-pretraining",
        data=dataclasses.replace(base.data, crop=crop),
        training=dataclasses.replace(base.training, phases=base.training.phases[:2]),
    )


def insighttok_finetune() -> RunConfig:
    """InsightTok's last two phases, for a tokenizer that is already trained (--init-from).

    The tokenizer's dimensions are those of the 426M model; set other ones with `--tokenizer.…` flags. With
    `--training.phases.0.trains decoder` the codes stay those of the original tokenizer. The recognizers' layers have
    equal weights, as in insighttok-nano. Not in the paper.
    """
    base = insighttok()
    scaled = dataclasses.replace(base.losses, text=_SCALED_TEXT, face=_SCALED_FACE)
    return _last_phases(dataclasses.replace(base, losses=scaled), "insighttok-finetune", adversarial_start=2000)


def vqgan_nano_finetune() -> RunConfig:
    """The last two phases of vqgan-nano, for pretrained weights of nano-pretraining (--init-from)."""
    return _last_phases(vqgan_nano(), "vqgan-nano-finetune", adversarial_start=0)


def insighttok_nano_finetune() -> RunConfig:
    """The last two phases of insighttok-nano, for pretrained weights of nano-pretraining (--init-from)."""
    return _last_phases(insighttok_nano(), "insighttok-nano-finetune", adversarial_start=0)


def insighttok_debug() -> RunConfig:
    """InsightTok with every phase and the text and face losses, trained for twelve steps, for tests."""
    base = insighttok_nano()
    weights = {"text": 1.0, "face": 1.0}
    return dataclasses.replace(
        base,
        name="insighttok-debug",
        tokenizer=dataclasses.replace(
            base.tokenizer, channels=16, groups=2, quantizer=EMAVQConfig(codebook_size=64, codebook_dim=8)
        ),
        losses=dataclasses.replace(base.losses, adversarial_weight=0.1, adversarial_start=3),
        discriminator=PatchDiscriminatorConfig(base_channels=32, num_layers=2),
        data=DataConfig(crop=CropConfig(resolution=64, word_height=(16.0, 32.0))),
        training=for_tests(
            base.training,
            Phase(name="warm-up", steps=2, quantize=False),
            Phase(name="pretrain", steps=4, region_share=0.5),
            Phase(name="text-and-face", steps=4, weights=weights, region_share=0.8),
            Phase(name="decoder", steps=2, trains=("decoder",), weights=weights, region_share=0.8),
        ),
    )


def _last_phases(base: RunConfig, name: str, adversarial_start: int) -> RunConfig:
    return dataclasses.replace(
        base,
        name=name,
        losses=dataclasses.replace(base.losses, adversarial_start=adversarial_start),
        training=dataclasses.replace(base.training, phases=base.training.phases[-2:]),
    )


PRESETS = (
    insighttok,
    insighttok_65k,
    insighttok_f8,
    insighttok_small,
    insighttok_finetune,
    vqgan_nano,
    insighttok_nano,
    nano_pretraining,
    vqgan_nano_finetune,
    insighttok_nano_finetune,
    insighttok_debug,
)
