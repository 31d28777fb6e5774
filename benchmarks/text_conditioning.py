"""Measure what conditioning on captions costs a tokenizer, and what storing their features saves.

    python benchmarks/text_conditioning.py [--preset textok-128-256] [--text-tokens 128] [--steps 5]

The first part times encoding and decoding of one picture without text, with text in context, and with text by
cross-attention, all with random weights and in turn (paper: text costs about .01 s per picture on its accelerator). The
second part times the features of captions: computed by MiniLM, and read from where `imtok embed` has stored them. The
captions are those of rendered signs.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

from imtok import presets, pretrained
from imtok.data.synthetic import synthesize
from imtok.data.text_features import distinct_captions, embed
from imtok.tokenizers.catalog import build
from imtok.tokenizers.text import TextConditioner, TextConfig
from imtok.tokenizers.textok import TexTokConfig

CAPTIONS, BATCH = 512, 32


def main(preset: str = "textok-128-256", text_tokens: int = 128, steps: int = 5) -> None:
    """Time both parts.

    Args:
        preset: preset of a text-conditioned tokenizer.
        text_tokens: text tokens of a caption.
        steps: timed steps, after one warm-up step.
    """
    config = presets.get(preset)
    assert isinstance(config.tokenizer, TexTokConfig)
    assert config.tokenizer.text is not None, f"{preset} is not conditioned on captions"
    text, size = config.tokenizer.text, config.data.crop.resolution
    image = torch.rand(1, 3, size, size) * 2 - 1
    text_features = (torch.randn(1, text_tokens, text.dim), torch.ones(1, text_tokens, dtype=torch.bool))
    variants: dict[str, Callable[[], object]] = {}
    for name, how in {"without text": None, "in context": "in_context", "cross-attention": "cross_attention"}.items():
        conditioning = None if how is None else dataclasses.replace(text, how=how)
        tokenizer = build(dataclasses.replace(config.tokenizer, text=conditioning)).eval()
        features = None if how is None else text_features
        variants[name] = lambda tokenizer=tokenizer, features=features: tokenizer.decode(
            tokenizer.encode(image, features).latents, features
        )
    print(f"{preset}, one picture of {size} px, {text_tokens} text tokens, {torch.get_num_threads()} threads")
    show(time_interleaved(variants, steps), "encode and decode")

    with tempfile.TemporaryDirectory() as folder:
        shards = str(Path(folder) / "signs")
        synthesize(shards, count=CAPTIONS)
        stored_text = TextConfig(encoder="text_encoder/minilm", dim=384)
        captions = list(distinct_captions(shards))[:BATCH]
        minilm = pretrained.load(stored_text.encoder)
        embed(shards, stored_text.encoder, stored_text.max_tokens)
        from_store = TextConditioner(stored_text, [shards])
        variants = {
            "by MiniLM itself": lambda: minilm.encode(captions, stored_text.max_tokens),
            "from the store": lambda: from_store.encode(captions),
        }
        print(f"\n{len(captions)} captions of signs")
        show(time_interleaved(variants, steps), "features")


@torch.no_grad()
def time_interleaved(variants: dict[str, Callable[[], object]], steps: int) -> dict[str, float]:
    """Return the median seconds of each call, timed in turn, so that a drift of the speed affects all equally."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for count in range(steps + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if count:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(medians: dict[str, float], what: str) -> None:
    """Print a line for each median, with its ratio to the first."""
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{what}, {name:18} {median * 1000:9.1f} ms  {median / first:.2f} x")


if __name__ == "__main__":
    tyro.cli(main)
