"""What hearing captions costs a tokenizer, and what storing their features saves.

    python benchmarks/text_conditioning.py [--preset textok-128-256] [--text-tokens 128] [--steps 5]

First encode and decode of one picture: without text, with it in context, and with cross-attention, all at random
weights, timed in turn (paper: text costs about .01 s a picture on its accelerator). Then a caption's features: by
MiniLM itself, and from where `imtok embed` has stored them; rendered signs bring the captions.
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
    """Time both.

    Args:
        preset: a text-conditioned run.
        text_tokens: of a caption.
        steps: counted ones, after one that is not.
    """
    config = presets.get(preset)
    assert isinstance(config.tokenizer, TexTokConfig)
    assert config.tokenizer.text is not None, f"{preset} hears of no captions"
    text, size = config.tokenizer.text, config.data.crop.resolution
    image = torch.rand(1, 3, size, size) * 2 - 1
    heard = (torch.randn(1, text_tokens, text.dim), torch.ones(1, text_tokens, dtype=torch.bool))
    ways: dict[str, Callable[[], object]] = {}
    for name, told in {"without text": None, "in context": "in_context", "cross-attention": "cross_attention"}.items():
        hears = None if told is None else dataclasses.replace(text, how=told)
        tokenizer = build(dataclasses.replace(config.tokenizer, text=hears)).eval()
        given = None if told is None else heard
        ways[name] = lambda tokenizer=tokenizer, given=given: tokenizer.decode(
            tokenizer.encode(image, given).latents, given
        )
    print(f"{preset}, one picture of {size} px, {text_tokens} text tokens, {torch.get_num_threads()} threads")
    show(time_interleaved(ways, steps), "encode and decode")

    with tempfile.TemporaryDirectory() as folder:
        shards = str(Path(folder) / "signs")
        synthesize(shards, count=CAPTIONS)
        stored = TextConfig(encoder="text_encoder/minilm", dim=384)
        captions = list(distinct_captions(shards))[:BATCH]
        minilm = pretrained.load(stored.encoder)
        embed(shards, stored.encoder, stored.max_tokens)
        from_store = TextConditioner(stored, [shards])
        ways = {
            "by MiniLM itself": lambda: minilm.encode(captions, stored.max_tokens),
            "from the store": lambda: from_store.encode(captions),
        }
        print(f"\n{len(captions)} captions of signs")
        show(time_interleaved(ways, steps), "features")


@torch.no_grad()
def time_interleaved(ways: dict[str, Callable[[], object]], steps: int) -> dict[str, float]:
    """Median seconds of each, timed in turn, so that a machine whose speed drifts treats all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(steps + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if count:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(medians: dict[str, float], what: str) -> None:
    """A line for each, with its ratio to the first."""
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{what}, {name:18} {median * 1000:9.1f} ms  {median / first:.2f} x")


if __name__ == "__main__":
    tyro.cli(main)
