"""Time a training step of a small VQGAN in fp32 and bf16, with and without the channels-last memory layout.

    python benchmarks/precision_and_layout.py [--preset vqgan-nano] [--steps 5]

Which of the four is fastest depends on the processor, so measure before a long run: the flags are
`--training.precision` and `--training.channels-last`. The four are timed in turn, so that a drift of the machine's
speed affects all equally. The benchmark prints the median of each and its ratio to the fastest.
"""

import statistics
import time

import torch
import tyro

from imtok import presets
from imtok.tokenizers.catalog import build


def main(preset: str = "vqgan-nano", steps: int = 5) -> None:
    """Time forward pass, backward pass and optimizer step.

    Args:
        preset: preset of the run, whose batch size and resolution are used.
        steps: timed steps, after one warm-up step.
    """
    config = presets.get(preset)
    size = config.data.crop.resolution
    images = torch.rand(config.training.global_batch_size, 3, size, size) * 2 - 1
    variants = [(precision, layout) for precision in ("fp32", "bf16") for layout in ("contiguous", "channels last")]
    trainers = {}
    for precision, layout in variants:
        torch.manual_seed(0)
        tokenizer = build(config.tokenizer).train()
        if layout == "channels last":
            tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.AdamW(tokenizer.parameters(), 1e-4, fused=True)
        trainers[precision, layout] = tokenizer, optimizer
    seconds: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
    for count in range(steps + 1):
        for variant, (tokenizer, optimizer) in trainers.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=variant[0] == "bf16"):
                encoding = tokenizer.encode(images)
                reconstructions = tokenizer.decode(encoding.latents, grid_size=encoding.grid_size)
            (reconstructions.float() - images).abs().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if count:
                seconds[variant].append(time.perf_counter() - started)
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    print(f"{preset}, {len(images)} pictures of {size} px, {torch.get_num_threads()} threads, {steps} steps")
    for (precision, layout), median in medians.items():
        print(f"{precision}, {layout:14} {median:.2f} s  {median / min(medians.values()):.2f} x")


if __name__ == "__main__":
    tyro.cli(main)
