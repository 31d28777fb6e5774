"""A step of DiT over few tokens beside one over many: how much faster pictures of fewer tokens are drawn.

    python benchmarks/dit_speed.py [--size xl] [--tokens 32 64 256 1024] [--batch 1] [--steps 1]

Untrained weights, fp32, guided (two rows a picture), timed in turn. At 512 px the paper draws 93.5 times faster over 32
tokens than DiT-XL/2 does over 1,024, and at 256 px 14.3 times faster than over 256, each with a better gFID (Figure 4);
its time holds tokenizer and text encoder too, and its numbers of steps differ. Here it is the step alone.
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
    """Time all numbers of tokens.

    Args:
        size: of the model.
        tokens: of a picture; the last is what the others are compared with.
        batch: pictures that are drawn together.
        steps: counted ones, after one that is not.
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
    medians = {count: statistics.median(taken) for count, taken in seconds.items()}
    print(f"DiT-{size.upper()}, batch {batch}, guided, fp32, {torch.get_num_threads()} threads, {steps} counted steps")
    for count, median in medians.items():
        print(f"{count:5} tokens: {median * 1000:8.1f} ms a step, {medians[tokens[-1]] / median:.1f} times as fast")


if __name__ == "__main__":
    tyro.cli(main)
