"""Presets of InsightAR: language models that continue a prompt with image codes, and small ones for a laptop's CPU."""

import dataclasses
from collections.abc import Callable
from typing import Any

from imtok.generators.insightar import InsightARConfig
from imtok.generators.sampling import SamplingConfig
from imtok.presets.shared import for_tests
from imtok.training.run import GeneratorRunConfig, OptimizerConfig, Phase, TrainingConfig

_DEEPSEEK: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 102_400,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 16_384,
    "rms_norm_eps": 1e-6,
}
"""DeepSeek-LLM 7B, the base of Janus-Pro; give the folder of its weights as `--generator.language-model`."""
_BYTES: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
}
_HEAD = ("adapter", "head", "embedding", "start_of_image", "similarity", "grid")


def insightar_7b() -> GeneratorRunConfig:
    """InsightAR, 7B over InsightTok's codes at 512 px (InsightTok, section 3.3 and appendix E.2).

    Paper: 150M pictures; guidance 5 and top-k 4,096 (appendix F.2); T-NED of long texts 95.83 %, MagFace 23.33 (Table
    2). Not trained here. The steps of the second stage, one epoch, follow from the batch size: 150M / 512.

    The weights are sharded over the processes that torchrun starts; on a single device use
    `--training.no-shard-weights`.
    """
    return GeneratorRunConfig(
        name="insightar-7b",
        generator=InsightARConfig(architecture=_DEEPSEEK),
        sampling=SamplingConfig(guidance_scale=(5.0,), top_k=4096),
        training=TrainingConfig(
            phases=(
                Phase(name="adapter-and-head", steps=20_000, trains=_HEAD, learning_rate=1e-3),
                Phase(name="all", steps=150_000_000 // 512, trains=("all",), learning_rate=1e-4),
            ),
            global_batch_size=512,
            micro_batch_size=4,
            optimizer=OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.0, warmup_share=0.0, schedule="constant"),
            gradient_checkpointing=True,
            shard_weights=True,
        ),
    )


def insightar_smollm2() -> GeneratorRunConfig:
    """InsightAR over SmolLM2-135M, a language model that is available as a package: both stages, shortened."""
    base = insightar_7b()
    first, second = base.training.phases
    phases = (dataclasses.replace(first, steps=100), dataclasses.replace(second, steps=200))
    return dataclasses.replace(
        base,
        name="insightar-smollm2",
        generator=InsightARConfig(
            architecture={"model_type": "llama"}, language_model="language_model/smollm2", max_prompt_tokens=128
        ),
        training=dataclasses.replace(
            base.training,
            phases=phases,
            global_batch_size=4,
            micro_batch_size=4,
            gradient_checkpointing=False,
            shard_weights=False,
            precision="bf16",
            save_every=100,
            preview_every=0,
            evaluate_every=100,
            evaluation_pictures=32,
        ),
    )


def insightar_nano() -> GeneratorRunConfig:
    """InsightAR for a laptop's CPU, 3.7M with the head, trained from scratch: signs from prompts of bytes.

    Deviation: one phase, bytes, and settings that help so small a model without pretraining
    (docs/papers/insighttok.md).
    """
    base = insightar_7b()
    return dataclasses.replace(
        base,
        name="insightar-nano",
        generator=InsightARConfig(
            codebook_sizes=(4096,),
            codebook_dims=(32,),
            token_shape=(16, 16),
            architecture=_BYTES,
            prompt_format="bytes",
            max_prompt_tokens=128,
            head="linear",
            code_similarity=True,
            grid_embedding=True,
        ),
        sampling=SamplingConfig(guidance_scale=(2.0,), temperature=0.5, top_p=0.9),
        training=dataclasses.replace(
            base.training,
            phases=(Phase(name="train", steps=5000, trains=("all",)),),
            global_batch_size=16,
            micro_batch_size=None,
            optimizer=OptimizerConfig(
                learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup_share=0.02, final_share=0.05
            ),
            ema_decay=0.999,
            gradient_checkpointing=False,
            shard_weights=False,
            precision="bf16",
            save_every=250,
            preview_every=500,
            evaluate_every=500,
            evaluation_pictures=128,
        ),
    )


def insightar_debug() -> GeneratorRunConfig:
    """Both stages of InsightAR, trained for twelve steps, for tests."""
    base = insightar_nano()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    architecture = {**_BYTES, **small, "num_key_value_heads": 2}
    return dataclasses.replace(
        base,
        name="insightar-debug",
        generator=dataclasses.replace(base.generator, architecture=architecture),
        training=for_tests(
            base.training,
            Phase(name="adapter-and-head", steps=4, trains=_HEAD, learning_rate=2e-3),
            Phase(name="all", steps=8, trains=("all",)),
            ema_decay=None,
        ),
    )


PRESETS: tuple[Callable[[], GeneratorRunConfig], ...] = (
    insightar_7b,
    insightar_smollm2,
    insightar_nano,
    insightar_debug,
)
