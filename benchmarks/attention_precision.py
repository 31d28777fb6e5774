"""Time the forward and backward pass of attention on a CPU in bf16 and in fp32, for several sequence lengths.

    python benchmarks/attention_precision.py [--tokens 80 256 1024] [--steps 7]

The result is the reason why `imtok.layers.transformer.attend` computes in fp32 on a CPU.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: docs/training.md

import statistics
import time

import torch
import torch.nn.functional as F
import tyro


def main(tokens: tuple[int, ...] = (80, 256, 1024), heads: int = 4, channels: int = 32, steps: int = 7) -> None:
    """Time both precisions in turn.

    Args:
        tokens: sequence lengths; the batch size shrinks in proportion, so that the number of tokens stays the same.
        heads: attention heads.
        channels: channels of a head.
        steps: timed steps, after one warm-up step.
    """
    print(f"{heads} heads of {channels} channels, {torch.get_num_threads()} threads; median milliseconds")
    for length in tokens:
        batch = max(1, 16 * tokens[0] // length)
        seconds: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
        for count in range(steps + 1):
            for dtype, timings in seconds.items():
                q, k, v = (torch.randn(batch, heads, length, channels, dtype=dtype).requires_grad_() for _ in range(3))
                start = time.perf_counter()
                F.scaled_dot_product_attention(q, k, v).sum().backward()
                if count:
                    timings.append(time.perf_counter() - start)
        half, full = (statistics.median(timings) for timings in seconds.values())
        ratio = half / full
        print(f"{length:5} tokens, batch {batch:3}: bf16 {half * 1e3:6.1f}, fp32 {full * 1e3:6.1f}; {ratio:.2f} times")


if __name__ == "__main__":
    tyro.cli(main)
