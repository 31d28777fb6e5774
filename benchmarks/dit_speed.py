"""Time a DiT step for different numbers of tokens: how much faster sampling is with fewer tokens.

    python benchmarks/dit_speed.py [--size xl] [--tokens 32 64 256 1024] [--batch 1] [--steps 1]

The models have untrained weights in fp32 and sample with guidance (two rows per picture); they are timed in turn. The
paper (Figure 4) samples 32 tokens 93.5 times faster than DiT-XL/2 samples 1,024 at 512 px, and 14.3 times faster than
it samples 256 at 256 px, each with a better gFID. The paper's times include tokenizer and text encoder, and its numbers
of steps differ; here a single step is timed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import statistics
import time
from typing import Literal

import torch
import tyro

from imtok.generators.diffusion import DiffusionSamplingConfig
from imtok.generators.dit import DiT, DiTConfig
from imtok.presets.dit import SIZES


def main(
    size: Literal["s", "b", "l", "xl"] = "xl",
    tokens: tuple[int, ...] = (32, 64, 256, 1024),
    batch: int = 1,
    steps: int = 1,
) -> None:
    """Time a step for each number of tokens.

    Args:
        size: model size.
        tokens: numbers of tokens of a picture; the others are compared with the last.
        batch: pictures that are sampled together.
        steps: timed steps, after one warm-up step.
    """
    if min(*tokens, batch, steps) < 1:
        raise SystemExit("tokens, batch and steps must be at least 1")
    torch.manual_seed(0)
    models = {count: DiT(DiTConfig(token_shape=(count,), **SIZES[size])).eval() for count in tokens}
    settings = DiffusionSamplingConfig(num_inference_steps=1, guidance_scale=2.0)
    seconds: dict[int, list[float]] = {count: [] for count in tokens}
    for step in range(steps + 1):
        for count, model in models.items():
            started = time.perf_counter()
            model.sample(["0"] * batch, list(range(batch)), settings)
            if step:
                seconds[count].append(time.perf_counter() - started)
    medians = {count: statistics.median(timings) for count, timings in seconds.items()}
    print(f"DiT-{size.upper()}, batch {batch}, guided, fp32, {torch.get_num_threads()} threads, {steps} counted steps")
    for count, median in medians.items():
        print(f"{count:5} tokens: {median * 1000:8.1f} ms a step, {medians[tokens[-1]] / median:.1f} times as fast")


if __name__ == "__main__":
    tyro.cli(main)
