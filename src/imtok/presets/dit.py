"""Presets of DiT over TexTok's latents, class- and text-conditional, and small ones for a laptop's CPU."""

import dataclasses
from collections.abc import Callable
from typing import Any

from imtok.generators.diffusion import DiffusionSamplingConfig
from imtok.generators.dit import DiTConfig
from imtok.presets.shared import IMAGENET, for_tests
from imtok.presets.textok import MINILM, T5
from imtok.training.run import GeneratorRunConfig, OptimizerConfig, Phase, TrainingConfig

SIZES: dict[str, dict[str, Any]] = {
    "s": {"depth": 12, "dim": 384, "num_heads": 6},
    "b": {"depth": 12, "dim": 768, "num_heads": 12},
    "l": {"depth": 24, "dim": 1024, "num_heads": 16},
    "xl": {"depth": 28, "dim": 1152, "num_heads": 16},
}
"""Model sizes of DiT (Table 1): 33M, 130M, 458M and 675M parameters."""


def dit(size: str, tokens: int, resolution: int, text: bool = False) -> GeneratorRunConfig:
    """DiT over TexTok's continuous tokens, patch size 1 (TexTok, sections 4.1 and 4.4, appendix C).

    Paper: 350 epochs of ImageNet; DiT-XL at 256 px with 32, 64, 128, 256 tokens: gFID 2.75, 2.06, 1.66, 1.46; at 512
    px 2.74, 1.99, 1.80, 1.62. Not trained here.

    The paper uses MDT's guidance schedule for DiT-XL without giving its values; here they are those of MDT. DiT-L is
    sampled without guidance (Table 1), and DiT-B is not in the paper. The paper does not specify the length of the
    warm-up (here 1 % of the steps), the decay of the averaged weights (here DiT's), the dropout of texts (here that of
    DiT's classes) and gradient clipping (here to a norm of 1).

    Args:
        size: model size, one of "s", "b", "l" or "xl".
        tokens: N of the tokenizer `textok-N-RESOLUTION`.
        resolution: side of the pictures in pixels, 256 or 512.
        text: DiT-T2I, conditioned on captions by the tokenizer's own text encoder instead of on classes.
    """
    return GeneratorRunConfig(
        name=f"dit-{size}-{'t2i-' if text else ''}textok-{tokens}-{resolution}",
        generator=DiTConfig(token_shape=(tokens,), text=T5[resolution] if text else None, **SIZES[size]),
        sampling=DiffusionSamplingConfig(
            guidance_scale=1.0 if size == "l" else 3.8, guidance_schedule="power_cosine", guidance_power=4.0
        ),
        training=TrainingConfig(
            phases=(Phase(name="train", steps=350 * IMAGENET // 1024, trains=("all",)),),
            global_batch_size=1024,
            micro_batch_size=64,
            optimizer=OptimizerConfig(learning_rate=5e-4, betas=(0.9, 0.99), weight_decay=0.01, warmup_share=0.01),
            ema_decay=0.9999,
        ),
    )


def dit_nano() -> GeneratorRunConfig:
    """DiT for a laptop's CPU, 3.5M over textok-nano's 2 tokens: signs, conditioned on the kind of their words.

    Deviation: the training settings, which make better use of few steps (docs/papers/textok.md).
    """
    base = dit("s", 2, 256)
    return dataclasses.replace(
        base,
        name="dit-nano",
        generator=dataclasses.replace(base.generator, num_classes=12, dim=192, depth=5, num_heads=6),
        sampling=dataclasses.replace(base.sampling, num_inference_steps=50),
        training=dataclasses.replace(
            base.training,
            phases=(Phase(name="train", steps=6000, trains=("all",)),),
            global_batch_size=64,
            micro_batch_size=None,
            optimizer=dataclasses.replace(
                base.training.optimizer, learning_rate=1e-3, warmup_share=0.02, final_share=0.05
            ),
            ema_decay=0.999,
            precision="fp32",
            save_every=250,
            preview_every=1000,
            evaluate_every=1000,
            evaluation_pictures=128,
        ),
    )


def dit_t2i_nano() -> GeneratorRunConfig:
    """DiT-T2I for a laptop's CPU, 3.5M over textok-nano's 2 tokens, conditioned on captions by MiniLM.

    Deviation: those of dit-nano.
    """
    base = dit_nano()
    generator = dataclasses.replace(base.generator, depth=4, text=MINILM)
    return dataclasses.replace(base, name="dit-t2i-nano", generator=generator)


def dit_debug() -> GeneratorRunConfig:
    """A generator of latents, trained for twelve steps, for tests."""
    base = dit_nano()
    return dataclasses.replace(
        base,
        name="dit-debug",
        generator=dataclasses.replace(base.generator, dim=32, depth=2, num_heads=2),
        sampling=dataclasses.replace(base.sampling, num_inference_steps=4),
        training=for_tests(base.training, Phase(name="train", steps=12, trains=("all",))),
    )


def _member(size: str, tokens: int, resolution: int, text: bool = False) -> Callable[[], GeneratorRunConfig]:
    """Return a preset of one member of the family."""

    def preset() -> GeneratorRunConfig:
        return dit(size, tokens, resolution, text)

    preset.__name__ = preset().name
    condition = "captions by T5" if text else "classes"
    of_paper = {"b": "not in the paper", "l": "TexTok, Table 1", "xl": "TexTok, Table 2"}[size]
    if text:
        of_paper = "TexTok, Table 3" if resolution == 256 and tokens < 256 else "not in the paper"
    preset.__doc__ = f"DiT-{size.upper()} over textok-{tokens}-{resolution}, conditioned on {condition} ({of_paper})."
    return preset


PRESETS: tuple[Callable[[], GeneratorRunConfig], ...] = (
    *(
        _member(size, tokens, resolution)
        for size in ("b", "l", "xl")
        for resolution in (256, 512)
        for tokens in (32, 64, 128, 256)
    ),
    *(_member("xl", tokens, resolution, text=True) for resolution in (256, 512) for tokens in (32, 64, 128, 256)),
    dit_nano,
    dit_t2i_nano,
    dit_debug,
)
