"""Presets of FAR: class-conditional generators over factorized codes, and small ones for a laptop's CPU."""

import dataclasses
from collections.abc import Callable

from imtok.generators.far import FARConfig
from imtok.generators.sampling import SamplingConfig
from imtok.presets.shared import IMAGENET, for_tests
from imtok.training.run import GeneratorRunConfig, OptimizerConfig, Phase, TrainingConfig


def far_b() -> GeneratorRunConfig:
    """FAR-B, 415M with two codebooks of 16,384 codes at 256 px (FQGAN, section 4.1, Table 2 and appendix E).

    Paper: 300 epochs of ImageNet, gFID 3.38. Not trained here. Encode the pictures with `--crops ten`.

    The learning rate is the paper's, 2e-4; its code has 1e-4. The guidance scale of 2 is that of section 4.1.
    """
    return GeneratorRunConfig(
        name="far-b",
        generator=FARConfig(),
        sampling=SamplingConfig(guidance_scale=(2.0,)),
        training=TrainingConfig(
            phases=(Phase(name="train", steps=300 * IMAGENET // 256, trains=("all",)),),
            global_batch_size=256,
            micro_batch_size=8,
            optimizer=OptimizerConfig(
                learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup_share=0.0, schedule="constant"
            ),
        ),
    )


def far_l() -> GeneratorRunConfig:
    """FAR-L, 898M with two codebooks (FQGAN, Table 2 and appendix E): wider and deeper than far-b.

    Paper: gFID 3.08; with the heads of Table 4, guidance 1.75 and top-k 4,096: 4.37 factorized, 5.19 linear, 5.59 MLP.
    Not trained here.
    """
    base = far_b()
    generator = dataclasses.replace(base.generator, dim=1280, depth=36, num_heads=20, head_depth=4)
    return dataclasses.replace(base, name="far-l", generator=generator)


def far_b_triple() -> GeneratorRunConfig:
    """FAR-B over fqgan-triple's three codebooks, 452M, guidance 1.75 (FQGAN, appendix E).

    Paper: gFID 3.84. Not trained here.
    """
    return _triple(far_b())


def far_l_triple() -> GeneratorRunConfig:
    """FAR-L over fqgan-triple's three codebooks, 945M, guidance 1.75 (FQGAN, appendix E).

    Paper: gFID 3.09. Not trained here.
    """
    return _triple(far_l())


def far_nano() -> GeneratorRunConfig:
    """FAR for a laptop's CPU, 3.9M over two codebooks of 2,048 codes: signs, conditioned on their word.

    The shards' labels are the words (recipes/far_nano.py). Deviation: the training settings, dropout of .05 and a head
    of one block, which make better use of few steps of a small model, and sampling at temperature .3, where more words
    can be read, without guidance, which does not improve that (docs/papers/fqgan.md).
    """
    base = far_b()
    return dataclasses.replace(
        base,
        name="far-nano",
        generator=FARConfig(
            codebook_sizes=(2048, 2048), num_classes=118, dim=192, depth=4, num_heads=6, head_depth=1, dropout=0.05
        ),
        sampling=SamplingConfig(guidance_scale=(1.0,), temperature=0.3),
        training=dataclasses.replace(
            base.training,
            phases=(Phase(name="train", steps=3000, trains=("all",)),),
            global_batch_size=16,
            micro_batch_size=None,
            optimizer=OptimizerConfig(
                algorithm="muon",
                learning_rate=1e-2,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                warmup_share=0.02,
                final_share=0.05,
            ),
            ema_decay=0.999,
            precision="bf16",
            save_every=250,
            preview_every=1000,
            evaluate_every=1000,
            evaluation_pictures=128,
        ),
    )


def far_debug() -> GeneratorRunConfig:
    """A generator, trained for twelve steps, for tests."""
    base = far_nano()
    return dataclasses.replace(
        base,
        name="far-debug",
        generator=dataclasses.replace(base.generator, dim=32, depth=1, num_heads=2),
        training=for_tests(base.training, Phase(name="train", steps=12, trains=("all",))),
    )


def _triple(dual: GeneratorRunConfig) -> GeneratorRunConfig:
    """Return the config for three codebooks with unchanged model dimensions; the paper gives these for two only."""
    return dataclasses.replace(
        dual,
        name=f"{dual.name}-triple",
        generator=dataclasses.replace(dual.generator, codebook_sizes=(16_384,) * 3),
        sampling=SamplingConfig(guidance_scale=(1.75,)),
    )


PRESETS: tuple[Callable[[], GeneratorRunConfig], ...] = (
    far_b,
    far_l,
    far_b_triple,
    far_l_triple,
    far_nano,
    far_debug,
)
